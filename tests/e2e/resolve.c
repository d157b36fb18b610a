/* Prints the IPv4 addresses of a name as the C library finds them without a hosts file. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    char text[INET_ADDRSTRLEN];
    int error = getaddrinfo(argv[argc - 1], NULL, &hints, &found);
    if (error) {
        fprintf(stderr, "%s\n", gai_strerror(error));
        return 1;
    }
    for (; found; found = found->ai_next)
        puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
    return 0;
}
