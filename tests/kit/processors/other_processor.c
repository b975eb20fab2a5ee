/* Hide vector instructions from a process: LD_PRELOAD this library, with TLKIT_PROCESSOR=avx2 or avx512.
 *
 * ONNX Runtime, PyTorch and OpenBLAS choose their kernels by what the instruction CPUID says. Linux lets a process have
 * CPUID fault (arch_prctl(ARCH_SET_CPUID, 0), where the processor can), and the handler here answers in its place: with
 * avx512 like a processor with AVX-512 and without VNNI, with avx2 like one that has AVX2 alone.
 *
 * cc -shared -fPIC -O1 -o other_processor.so other_processor.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static int avx2_only;
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static void mask(unsigned leaf, unsigned subleaf, unsigned *eax, unsigned *ebx, unsigned *ecx, unsigned *edx) {
    if (leaf != 7) return;
    if (subleaf == 0) {
        *ecx &= ~BIT(11);                                /* AVX512_VNNI */
        *edx &= ~(BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AMX_BF16, AVX512_FP16, AMX_TILE, AMX_INT8 */
        if (avx2_only) {
            *ebx &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31)); /* AVX512 F, DQ, IFMA, CD, BW, VL */
            *ecx &= ~(BIT(1) | BIT(6) | BIT(12) | BIT(14));                       /* VBMI, VBMI2, BITALG, VPOPCNTDQ */
            *edx &= ~(BIT(2) | BIT(3) | BIT(8));                                  /* 4VNNIW, 4FMAPS, VP2INTERSECT */
        }
    } else if (subleaf == 1) {
        *eax &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));  /* AVX_VNNI, AVX512_BF16, AMX_FP16, AVX_IFMA */
        *edx &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* AVX_VNNI_INT8, NE_CONVERT, AMX_COMPLEX, VNNI_INT16, AVX10 */
    }
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
    if (info->si_code != SI_KERNEL || instruction[0] != 0x0f || instruction[1] != 0xa2) {
        struct sigaction usual = {.sa_handler = SIG_DFL};
        real_sigaction(signal_number, &usual, NULL); /* a fault of another kind: it happens again, and ends the process */
        return;
    }
    unsigned eax, ebx, ecx, edx, leaf = registers[REG_RAX], subleaf = registers[REG_RCX];
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __asm__ volatile("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(leaf), "c"(subleaf));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    mask(leaf, subleaf, &eax, &ebx, &ecx, &edx);
    registers[REG_RAX] = eax, registers[REG_RBX] = ebx, registers[REG_RCX] = ecx, registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
}

/* Others that want SIGSEGV (Python's faulthandler, compilers) are told that they have it. */
int sigaction(int signal_number, const struct sigaction *wanted, struct sigaction *before) {
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    return real_sigaction(signal_number, signal_number == SIGSEGV ? NULL : wanted, before);
}

void (*signal(int signal_number, void (*wanted)(int)))(int) {
    struct sigaction before, after = {.sa_handler = wanted, .sa_flags = SA_RESTART};
    return sigaction(signal_number, &after, &before) ? SIG_ERR : before.sa_handler;
}

__attribute__((constructor)) static void begin(void) {
    const char *processor = getenv("TLKIT_PROCESSOR");
    if (!processor) return;
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    avx2_only = !strcmp(processor, "avx2");
    struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (real_sigaction(SIGSEGV, &ours, NULL) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fprintf(stderr, "other_processor: %s\n", strerror(errno));
        _exit(77);
    }
}
