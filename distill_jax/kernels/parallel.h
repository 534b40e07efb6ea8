// Parts of a batch on XLA's own threads, each of which runs oneDNN on one thread.
//
// The result of a part depends on its bounds alone, and the bounds depend on shapes alone, so that
// the number of threads, and which of them are free, change no bit.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace distill {

namespace ffi = xla::ffi;

// oneDNN asks OpenMP how many threads it may start. The number belongs to the calling thread, which
// may be one of Python's, so it is restored.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// Memory that grows and is reused, aligned to a cache line.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, size_);
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// One of a thread, for oneDNN's scratchpads; and one of the thread that distributes the parts.
inline void* scratchpad(size_t bytes) {
  thread_local Buffer buffer;
  return buffer.get(std::max<size_t>(bytes, 64));
}

// Rows 0 .. rows - 1 in at most `most` parts of equal size, of which the last may be smaller.
struct Parts {
  Parts(int64_t rows, int64_t most)
      : rows(rows), size((rows + most - 1) / most), count(size ? (rows + size - 1) / size : 0) {}
  int64_t begin(int64_t part) const { return part * size; }
  int64_t length(int64_t part) const { return std::min(size, rows - begin(part)); }
  int64_t rows, size, count;
};

// Calls f(0) .. f(count - 1) on the pool's threads and the caller's. The caller takes parts too, so
// it never waits for a part that no thread has begun.
inline void parallel(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> f) {
  struct Shared {
    std::function<void(int64_t)> f;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  shared->f = std::move(f);
  shared->count = count;
  auto work = [shared] {
    OneThread one_thread;
    for (int64_t i; (i = shared->next.fetch_add(1)) < shared->count;) {
      shared->f(i);
      if (shared->done.fetch_add(1) + 1 == shared->count) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->all_done.notify_all();
      }
    }
  };
  int64_t helpers = std::min<int64_t>(count, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; i++) pool.Schedule(std::function<void()>(work));
  work();
  for (int spin = 0; spin < 4000 && shared->done.load() < count; spin++) __builtin_ia32_pause();
  if (shared->done.load() < count) {
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->all_done.wait(lock, [&] { return shared->done.load() == count; });
  }
}

}  // namespace distill
