/* Preloaded into a process, makes calls on files fail, and the clock of the day run backwards.

   FAULT_CALL=read|write FAULT_ERRNO=N FAULT_PATH=PART [FAULT_COUNT=K] [FAULT_WHILE=FILE]: calls on
   files whose path holds PART fail, the first K of them (all by default), while FILE exists.
   CLOCK_BACK_WHILE=FILE: the time of the day is an hour earlier while FILE exists. The kernel's own
   clock is not, so threads that wait until a time of the day (TensorStore's idle ones) are woken at
   once and spin for as long as they would have slept; a clock that is really set back lets them
   sleep longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long failed = 0;

static int fails(const char *call, int descriptor) {
  const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH");
  if (!wanted || !part || strcmp(wanted, call)) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (!strstr(path, part)) return 0;
  const char *gate = getenv("FAULT_WHILE"), *count = getenv("FAULT_COUNT");
  if (gate && access(gate, F_OK)) return 0;
  if (count && __sync_add_and_fetch(&failed, 1) > atol(count)) return 0;
  errno = atoi(getenv("FAULT_ERRNO"));
  return 1;
}

#define WRAP(result, name, call, parameters, arguments, descriptor) \
  result name parameters {                                          \
    static result(*real) parameters = NULL;                         \
    if (!real) real = dlsym(RTLD_NEXT, #name);                      \
    return fails(call, descriptor) ? -1 : real arguments;           \
  }

WRAP(ssize_t, read, "read", (int f, void *b, size_t n), (f, b, n), f)
WRAP(ssize_t, pread, "read", (int f, void *b, size_t n, off_t o), (f, b, n, o), f)
WRAP(ssize_t, pread64, "read", (int f, void *b, size_t n, off64_t o), (f, b, n, o), f)
WRAP(ssize_t, write, "write", (int f, const void *b, size_t n), (f, b, n), f)
WRAP(ssize_t, pwrite, "write", (int f, const void *b, size_t n, off_t o), (f, b, n, o), f)
WRAP(ssize_t, pwrite64, "write", (int f, const void *b, size_t n, off64_t o), (f, b, n, o), f)
WRAP(ssize_t, writev, "write", (int f, const struct iovec *v, int n), (f, v, n), f)

int clock_gettime(clockid_t clock, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *) = NULL;
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, at);
  const char *gate = clock == CLOCK_REALTIME ? getenv("CLOCK_BACK_WHILE") : NULL;
  if (gate && !access(gate, F_OK)) at->tv_sec -= 3600;
  return result;
}
