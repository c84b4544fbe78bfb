// Counts allocations that happen while denormals are flushed: for the length of a native call of the engine.
#define _GNU_SOURCE
#include <stddef.h>
#include <xmmintrin.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static _Thread_local long allocations;

static int flushes(void) { return (_mm_getcsr() & 0x8040) == 0x8040; }
static void count(void) { allocations += flushes(); }

void *malloc(size_t size) { count(); return __libc_malloc(size); }
void *calloc(size_t n, size_t size) { count(); return __libc_calloc(n, size); }
void *realloc(void *p, size_t size) { count(); return __libc_realloc(p, size); }
void *memalign(size_t to, size_t size) { count(); return __libc_memalign(to, size); }
void *aligned_alloc(size_t to, size_t size) { count(); return __libc_memalign(to, size); }
int posix_memalign(void **p, size_t to, size_t size) {
  count();
  *p = __libc_memalign(to, size);
  return *p ? 0 : 12;
}
void free(void *p) { count(); __libc_free(p); }

// Allocations of this thread so far, and zero again.
long allocations_taken(void) {
  const long found = allocations;
  allocations = 0;
  return found;
}

// One allocation under flushed denormals and one not: the counter must count one malloc and one free.
void allocate_once(void) {
  void *volatile other = malloc(8);
  free(other);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  void *volatile p = malloc(100);
  free(p);
  _mm_setcsr(before);
}
