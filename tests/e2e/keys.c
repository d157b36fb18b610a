/* `keys PROGRAM ARGUMENT...` executes a program with a key in its session keyring; `keys look` says whether it has that key. */
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (!strcmp(argv[1], "look")) {
        puts(syscall(SYS_keyctl, 10, -3, "user", "caller-key", 0) < 0 ? "no key" : "the caller's key");
        return 0;
    }
    if (syscall(SYS_keyctl, 1, 0) < 0 || syscall(SYS_add_key, "user", "caller-key", "x", 1, -3) < 0) return 9;
    execv(argv[1], argv + 1);
    return 8;
}
