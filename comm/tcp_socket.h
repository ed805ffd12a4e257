#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace narrowgauge::comm {

// A TCP connection that carries lines of text. Owns its descriptor; one thread at a time uses it.
class TcpSocket {
 public:
  // A line longer than this closes the connection: no peer of ours sends one.
  static constexpr size_t kMaxLineBytes = size_t{1} << 26;

  explicit TcpSocket(int descriptor = -1);
  ~TcpSocket();
  TcpSocket(TcpSocket&& other) noexcept;
  TcpSocket& operator=(TcpSocket&& other) noexcept;

  // `address` is numeric, IPv4 or IPv6. Closed when there is no connection within `timeout`.
  static TcpSocket connect(const std::string& address, uint16_t port,
                           std::chrono::milliseconds timeout);

  int descriptor() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  void close();

  // Sends `line` (without a line feed in it) and a line feed. Never raises SIGPIPE. False when the
  // peer is gone or has not taken it within a second.
  bool send_line(const std::string& line);

  // The next line, without its end; what has arrived already is asked first. Nothing when none has
  // come within `timeout`, and nothing and closed when the peer has closed.
  std::optional<std::string> receive_line(std::chrono::milliseconds timeout);

 private:
  int descriptor_;
  std::string received_;  // what came after the last line
};

// A socket that listens on every address of this host, at a port that the system chooses.
class TcpListener {
 public:
  // Throws std::runtime_error.
  TcpListener();
  ~TcpListener();
  TcpListener(const TcpListener&) = delete;
  TcpListener& operator=(const TcpListener&) = delete;

  int descriptor() const { return descriptor_; }
  uint16_t port() const { return port_; }
  // REQUIRES: a connection waits. Closed if it has gone meanwhile.
  TcpSocket accept() const;

 private:
  int descriptor_ = -1;
  uint16_t port_ = 0;
};

// This host's addresses in numbers, those that other hosts may reach first and loopback last.
std::vector<std::string> host_addresses();

}  // namespace narrowgauge::comm
