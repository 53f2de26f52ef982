/* Loads a library as ctypes does and asks for its version. Says how long the
 * best of several first loads took, how many threads there are afterwards, and
 * how often the library allocated meanwhile. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CALLERS_MAX = 4096, LOADS = 20 };

/* Who allocated while the library was loaded: the loader does, and is not
 * meant. Where the library lies is known only afterwards. */
static int recording;
static unsigned caller_count;
static uintptr_t callers[CALLERS_MAX];

static void record(void *caller) {
  if (recording && caller_count < CALLERS_MAX) callers[caller_count++] = (uintptr_t)caller;
}

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

void *malloc(size_t bytes) {
  record(__builtin_return_address(0));
  return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
  record(__builtin_return_address(0));
  return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes) {
  record(__builtin_return_address(0));
  return __libc_realloc(old, bytes);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Loads the library and checks its version; the time that took. */
static uint64_t load(const char *path) {
  uint32_t (*version)(void), (*abi)(void);
  uint64_t start = now_ns();
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  *(void **)&version = dlsym(library, "wsync_version");
  *(void **)&abi = dlsym(library, "wsync_abi_version");
  if (!version || !abi || version() == 0 || abi() != 0) exit(1);
  return now_ns() - start;
}

/* The same in a process of its own, where it is the first time. */
static uint64_t load_first(const char *path) {
  int ends[2];
  uint64_t took;
  if (pipe(ends)) exit(2);
  if (fork() == 0) {
    took = load(path);
    _exit(write(ends[1], &took, sizeof took) == sizeof took ? 0 : 1);
  }
  close(ends[1]);
  if (read(ends[0], &took, sizeof took) != sizeof took) exit(1);
  close(ends[0]);
  wait(NULL);
  return took;
}

/* Allocations that came from the library's own code. */
static unsigned allocations(void) {
  char line[1024];
  unsigned i, count = 0;
  int found = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  if (!maps) exit(2);
  while (fgets(line, sizeof line, maps)) {
    unsigned long begin, end;
    if (!strstr(line, "libweightsync") || sscanf(line, "%lx-%lx", &begin, &end) != 2) continue;
    found = 1;
    for (i = 0; i < caller_count; i++) count += callers[i] >= begin && callers[i] < end;
  }
  fclose(maps);
  if (!found) exit(2);
  return count;
}

static unsigned threads(void) {
  char line[256];
  unsigned count = 0;
  FILE *status = fopen("/proc/self/status", "r");
  if (!status) exit(2);
  while (fgets(line, sizeof line, status)) {
    if (sscanf(line, "Threads: %u", &count) == 1) break;
  }
  fclose(status);
  return count;
}

int main(int argc, char **argv) {
  uint64_t best = UINT64_MAX;
  int i;
  if (argc < 2) return 2;
  for (i = 0; i < LOADS; i++) {
    uint64_t took = load_first(argv[1]);
    if (took < best) best = took;
  }
  recording = 1;
  load(argv[1]);
  recording = 0;
  printf("best_load_ns %llu\n", (unsigned long long)best);
  printf("threads %u\n", threads());
  printf("allocations %u\n", allocations());
  return 0;
}
