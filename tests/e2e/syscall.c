/* One system call of a program without a C library: `syscall METHOD NUMBER ARGUMENT...` prints what it answered.
 *
 * METHOD is `s` (the syscall instruction) or `i` (int 0x80). An argument is a number, or `@N,N,...`: the address of 32-bit words.
 * Built with -m32 and with -m64 (see isolation.rs). */
typedef unsigned long word;

static unsigned words[64];
static unsigned used;

static word parse(const char *text, const char **end) {
    word number = 0;
    while (*text >= '0' && *text <= '9')
        number = number * 10 + (word)(*text++ - '0');
    *end = text;
    return number;
}

static word argument(const char *text) {
    const char *end;
    if (*text != '@')
        return parse(text, &end);
    unsigned *start = &words[used];
    do
        words[used++] = (unsigned)parse(text + 1, &text);
    while (*text == ',');
    return (word)start;
}

static long interrupt(word number, const word *a) {
    long result;
#ifdef __i386__
    __asm__ volatile("int $0x80"
                     : "=a"(result) : "0"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "memory");
#else
    __asm__ volatile("int $0x80"
                     : "=a"(result) : "0"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "r8", "r9", "r10", "r11", "memory");
    result = (int)result;
#endif
    return result;
}

static long instruction(word number, const word *a) {
#ifdef __i386__
    return interrupt(number, a);
#else
    long result;
    register word r10 __asm__("r10") = a[3];
    register word r8 __asm__("r8") = a[4];
    register word r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall"
                     : "=a"(result) : "0"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#endif
}

__attribute__((used)) static void start(word *stack) {
    word count = stack[0];
    char **args = (char **)&stack[1];
    const char *end;
    word a[6] = {0, 0, 0, 0, 0, 0};
    for (word i = 3; i < count && i < 9; i++)
        a[i - 3] = argument(args[i]);
    word number = parse(args[2], &end);
    long result = args[1][0] == 'i' ? interrupt(number, a) : instruction(number, a);
    char text[24];
    int at = 24;
    text[--at] = '\n';
    word rest = result < 0 ? (word)-result : (word)result;
    do
        text[--at] = (char)('0' + rest % 10);
    while (rest /= 10);
    if (result < 0)
        text[--at] = '-';
    word out[6] = {1, (word)&text[at], (word)(24 - at), 0, 0, 0};
    word leave[6] = {0, 0, 0, 0, 0, 0};
#ifdef __i386__
    interrupt(4, out);
    interrupt(1, leave);
#else
    instruction(1, out);
    instruction(60, leave);
#endif
}

#ifdef __i386__
__asm__(".globl _start\n_start: mov %esp, %eax; push %eax; call start\n");
#else
__asm__(".globl _start\n_start: mov %rsp, %rdi; and $-16, %rsp; call start\n");
#endif
