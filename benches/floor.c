/* The floor of a container's start: the same namespaces, a pivot_root and an exec, and nothing else. No image, network, limits, filter or record.
 *
 *     floor DIRECTORY PROGRAM [ARGUMENT]...
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(call) do { if ((long)(call) < 0) { perror(#call); exit(125); } } while (0)

int main(int count, char **words) {
    if (count < 3) return 2;
    CHECK(unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP));
    pid_t child = fork();
    CHECK(child);
    if (child == 0) {
        CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
        CHECK(mount(words[1], words[1], NULL, MS_BIND | MS_REC, NULL));
        CHECK(chdir(words[1]));
        CHECK(syscall(SYS_pivot_root, ".", "."));
        CHECK(umount2(".", MNT_DETACH));
        CHECK(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
        execv(words[2], words + 2);
        perror(words[2]);
        _exit(127);
    }
    int status;
    CHECK(waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
