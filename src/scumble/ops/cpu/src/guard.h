// What a kernel reports: 0 done, 1 out of memory, 2 another failure. No exception leaves a parallel region or this library:
// there it would end the process.
#pragma once
#include <atomic>
#include <new>

class Guard {
  std::atomic<int> code{0};

 public:
  template <class Work>
  void operator()(Work&& work) noexcept {
    if (code.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (const std::bad_alloc&) {
      code = 1;
    } catch (...) {
      code = 2;
    }
  }
  int result() const { return code; }
};
