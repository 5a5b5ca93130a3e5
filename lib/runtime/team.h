// A team of threads for loops of a few microseconds: the caller works too, and waits for nobody who has not begun.
//
// A loop is a number of chunks. Whoever is awake claims the next one; the caller goes on when all are done. A worker
// that the operating system has put aside between two chunks holds nobody up: the others do its share. Waiting is
// spinning at first, for at most `PATIENCE`, then sleeping, so that a machine whose cores others need is left to them.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

class Team {
 public:
  explicit Team(int threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    stop_.store(true);
    publish(0);
    for (auto& worker : workers_) worker.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return (int)workers_.size() + 1; }
  double waited() const { return waited_; }  // seconds that the caller has waited for others, if `timed`
  bool timed = false;

  // Call body(chunk, thread) for every chunk in 0 .. count - 1 (at most 65535 of them), in any order.
  template <class Body> void run(int count, Body&& body) {
    if (count <= 1 || workers_.empty()) {
      for (int chunk = 0; chunk < count; chunk++) body(chunk, 0);
      return;
    }
    context_ = &body;
    call_ = [](void* context, int chunk, int thread) { (*static_cast<Body*>(context))(chunk, thread); };
    left_.store(count, std::memory_order_relaxed);
    publish(count);
    while (claim(0)) {
    }
    if (left_.load(std::memory_order_acquire) == 0) return;
    const auto start = timed ? Clock::now() : Clock::time_point();
    await();
    if (timed) waited_ += std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds PATIENCE{100};

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  // Spin until `ready` or `PATIENCE` is over; returns whether it became ready.
  template <class Ready> static bool spin(Ready&& ready) {
    const auto start = Clock::now();
    do {
      for (int i = 0; i < 64; i++) {
        if (ready()) return true;
        pause();
      }
    } while (Clock::now() - start < PATIENCE);
    return ready();
  }

  // The ticket holds the number of the loop (32 bits), its count and its next chunk (16 bits each): one number, so that
  // a claim can't mix up two loops.
  static bool open(uint64_t ticket) { return (uint16_t)ticket < (uint16_t)(ticket >> 16); }

  void publish(int count) {
    ticket_.store((++loop_ << 32) | ((uint64_t)count << 16));
    if (asleep_.exchange(false)) ticket_.notify_all();
  }

  bool claim(int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
      if (!open(ticket)) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel));
    call_(context_, (uint16_t)ticket, thread);
    if (left_.fetch_sub(1) == 1 && awaiting_.load()) left_.notify_all();
    return true;
  }

  void await() {
    if (spin([this] { return left_.load(std::memory_order_acquire) == 0; })) return;
    while (true) {
      awaiting_.store(true);
      const int left = left_.load();
      if (left == 0) break;
      left_.wait(left);
    }
    awaiting_.store(false);
  }

  // Workers stay on a core each, of those that the process may use: on a busy machine the system would often leave one
  // on the caller's own core, where the two take turns. The caller is free to move.
  static void settle(int thread) {
#if defined(__linux__)
    cpu_set_t allowed, own;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || thread >= CPU_COUNT(&allowed)) return;
    CPU_ZERO(&own);
    for (int cpu = 0, left = thread; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &allowed) && left-- == 0) CPU_SET(cpu, &own);
    pthread_setaffinity_np(pthread_self(), sizeof own, &own);
#endif
  }

  void work(int thread) {
    settle(thread);
    const auto needed = [this] { return open(ticket_.load(std::memory_order_acquire)) || stop_.load(); };
    while (!stop_.load()) {
      while (claim(thread)) {
      }
      if (spin(needed)) continue;
      const uint64_t seen = ticket_.load();
      asleep_.store(true);
      if (!open(seen) && !stop_.load()) ticket_.wait(seen);
    }
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<bool> asleep_{false}, awaiting_{false}, stop_{false};
  void (*call_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  uint64_t loop_ = 0;
  double waited_ = 0;
  std::vector<std::thread> workers_;
};
