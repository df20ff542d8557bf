// Threads that the kernels share. See kernels.h for what callers may expect.
#ifndef HOROVOD_SIGN_THREADS_H_
#define HOROVOD_SIGN_THREADS_H_

// Calls work(context, part) for each part from 0 to parts - 1, on this thread and up to parts - 1 others, and returns
// when all are done.
void hs_run(int parts, void (*work)(void* context, int part), void* context);

#endif  // HOROVOD_SIGN_THREADS_H_
