// A pool of threads that sleep until there is work: they never spin, since other libraries' threads want the cores.
#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <new>

namespace {

class Pool {
 public:
  // False if another thread's work is under way.
  bool run(int parts, void (*work)(void*, int), void* context) {
    if (pthread_mutex_trylock(&caller_) != 0) return false;
    while (workers_ < parts - 1 && add_worker()) ++workers_;
    pthread_mutex_lock(&mutex_);
    work_ = work, context_ = context;
    parts_ = parts, next_ = 0, unfinished_ = parts;
    pthread_cond_broadcast(&wanted_);
    work_on();
    while (unfinished_ > 0) pthread_cond_wait(&finished_, &mutex_);
    pthread_mutex_unlock(&mutex_);
    pthread_mutex_unlock(&caller_);
    return true;
  }

  const pid_t process = getpid();

 private:
  // Takes parts until there are none left. Called, and returns, with the mutex held.
  void work_on() {
    while (next_ < parts_) {
      const int part = next_++;
      pthread_mutex_unlock(&mutex_);
      work_(context_, part);
      pthread_mutex_lock(&mutex_);
      if (--unfinished_ == 0) pthread_cond_signal(&finished_);
    }
  }

  static void* worker(void* self) {
    Pool* pool = static_cast<Pool*>(self);
    pthread_mutex_lock(&pool->mutex_);
    for (;;) {
      pool->work_on();
      pthread_cond_wait(&pool->wanted_, &pool->mutex_);
    }
    return nullptr;
  }

  bool add_worker() {
    // Signals are for the threads that the process knows of.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    const bool made = pthread_create(&thread, nullptr, worker, this) == 0;
    if (made) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return made;
  }

  pthread_mutex_t caller_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wanted_ = PTHREAD_COND_INITIALIZER;
  pthread_cond_t finished_ = PTHREAD_COND_INITIALIZER;
  int workers_ = 0;
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int parts_ = 0, next_ = 0, unfinished_ = 0;
};

// Never destroyed: its threads wait on it until the process ends.
Pool* pool = nullptr;
pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

// The pool of this process, or none. A child after fork() has none of its parent's threads and needs its own.
Pool* own_pool() {
  if (pthread_mutex_trylock(&making) != 0) return nullptr;
  if (!pool || pool->process != getpid()) {
    void* room = malloc(sizeof(Pool));  // not by C++'s library, without which this one runs in any process
    pool = room ? new (room) Pool : nullptr;
  }
  Pool* own = pool;
  pthread_mutex_unlock(&making);
  return own;
}

}  // namespace

void hs_run(int parts, void (*work)(void* context, int part), void* context) {
  Pool* own = parts > 1 ? own_pool() : nullptr;
  if (own && own->run(parts, work, context)) return;
  for (int part = 0; part < parts; ++part) work(context, part);
}
