/* Loads the driver's libraries as programs do: by name, from wherever the linker knows them. */
#include <dlfcn.h>
#include <stdio.h>

int main(void) {
    const char *names[] = {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", 0};
    for (int i = 0; names[i]; i++) {
        if (!dlopen(names[i], RTLD_NOW)) {
            puts(dlerror());
            return 1;
        }
    }
    puts("loaded");
    return 0;
}
