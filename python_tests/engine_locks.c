// Counts locks that are taken or waited for while denormals are flushed: for the length of a native call of the engine.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <time.h>
#include <xmmintrin.h>

static _Thread_local long locks;

static void count(void) { locks += (_mm_getcsr() & 0x8040) == 0x8040; }

// Defines `name` as a function that counts and then does what the next library's does.
#define COUNTED(name, parameters, arguments)                      \
  int name parameters {                                           \
    static int(*real) parameters;                                 \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);         \
    count();                                                      \
    return real arguments;                                        \
  }

COUNTED(pthread_mutex_lock, (pthread_mutex_t *m), (m))
COUNTED(pthread_mutex_trylock, (pthread_mutex_t *m), (m))
COUNTED(pthread_mutex_timedlock, (pthread_mutex_t *m, const struct timespec *t), (m, t))
COUNTED(pthread_rwlock_rdlock, (pthread_rwlock_t *l), (l))
COUNTED(pthread_rwlock_wrlock, (pthread_rwlock_t *l), (l))
COUNTED(pthread_spin_lock, (pthread_spinlock_t *l), (l))
COUNTED(pthread_cond_wait, (pthread_cond_t *c, pthread_mutex_t *m), (c, m))
COUNTED(pthread_cond_timedwait, (pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t), (c, m, t))
COUNTED(pthread_barrier_wait, (pthread_barrier_t *b), (b))
COUNTED(sem_wait, (sem_t *s), (s))

// Locks of this thread so far, and zero again.
long locks_taken(void) {
  const long found = locks;
  locks = 0;
  return found;
}

// One lock under flushed denormals and one not: the counter must count one.
void lock_once(void) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  pthread_mutex_unlock(&mutex);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  pthread_mutex_lock(&mutex);
  pthread_mutex_unlock(&mutex);
  _mm_setcsr(before);
}
