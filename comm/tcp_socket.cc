#include "comm/tcp_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace narrowgauge::comm {
namespace {

using std::chrono::milliseconds;

// Waits until `events` may happen on `descriptor`.
bool wait_for(int descriptor, short events, milliseconds timeout) {
  pollfd one{descriptor, events, 0};
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (true) {
    const auto left =
        std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
    const int ready = poll(&one, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
    if (ready >= 0 || errno != EINTR) {
      return ready > 0;
    }
  }
}

void set_options(int descriptor) {
  const int on = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const timeval second{1, 0};
  setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof second);
}

bool connects(int descriptor, const addrinfo& to, milliseconds timeout) {
  const int flags = fcntl(descriptor, F_GETFL);
  fcntl(descriptor, F_SETFL, flags | O_NONBLOCK);
  if (::connect(descriptor, to.ai_addr, to.ai_addrlen) != 0) {
    int error = errno;
    socklen_t size = sizeof error;
    if (error != EINPROGRESS || !wait_for(descriptor, POLLOUT, timeout) ||
        getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
      return false;
    }
  }
  fcntl(descriptor, F_SETFL, flags);
  return true;
}

// Binds to any address and a free port of `family` and listens; false where that cannot be.
bool listens(int descriptor, int family) {
  const int off = 0;
  sockaddr_in6 any6{};
  any6.sin6_family = AF_INET6;
  sockaddr_in any4{};
  any4.sin_family = AF_INET;
  if (family == AF_INET6) {
    setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    return bind(descriptor, reinterpret_cast<sockaddr*>(&any6), sizeof any6) == 0 &&
           listen(descriptor, SOMAXCONN) == 0;
  }
  return bind(descriptor, reinterpret_cast<sockaddr*>(&any4), sizeof any4) == 0 &&
         listen(descriptor, SOMAXCONN) == 0;
}

uint16_t port_of(int descriptor) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error(std::string("getsockname failed: ") + std::strerror(errno));
  }
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

}  // namespace

TcpSocket::TcpSocket(int descriptor) : descriptor_(descriptor) {
  if (is_open()) {
    set_options(descriptor_);
  }
}

TcpSocket::~TcpSocket() { close(); }

TcpSocket::TcpSocket(TcpSocket&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), received_(std::move(other.received_)) {}

TcpSocket& TcpSocket::operator=(TcpSocket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(received_, other.received_);
  return *this;
}

void TcpSocket::close() {
  if (is_open()) {
    ::close(std::exchange(descriptor_, -1));
  }
}

TcpSocket TcpSocket::connect(const std::string& address, uint16_t port, milliseconds timeout) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return TcpSocket();
  }
  TcpSocket made(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (made.is_open() && !connects(made.descriptor(), *found, timeout)) {
    made.close();
  }
  freeaddrinfo(found);
  return made;
}

bool TcpSocket::send_line(const std::string& line) {
  const std::string text = line + '\n';
  size_t sent = 0;
  while (is_open() && sent < text.size()) {
    const ssize_t count = send(descriptor_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno != EINTR) {
      return false;
    }
    sent += std::max<ssize_t>(count, 0);
  }
  return is_open();
}

std::optional<std::string> TcpSocket::receive_line(milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  size_t searched = 0;
  while (true) {
    const size_t line_end = received_.find('\n', searched);
    if (line_end != std::string::npos) {
      std::string line = received_.substr(0, line_end);
      received_.erase(0, line_end + 1);
      return line;
    }
    searched = received_.size();
    const auto left =
        std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
    if (!is_open() || !wait_for(descriptor_, POLLIN, std::max(left, milliseconds(0)))) {
      return std::nullopt;
    }
    std::array<char, 1 << 16> buffer;
    const ssize_t count = recv(descriptor_, buffer.data(), buffer.size(), 0);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0 || received_.size() > kMaxLineBytes) {
      close();
      return std::nullopt;
    }
    received_.append(buffer.data(), count);
  }
}

TcpListener::TcpListener() {
  for (const int family : {AF_INET6, AF_INET}) {
    descriptor_ = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (descriptor_ >= 0 && listens(descriptor_, family)) {
      port_ = port_of(descriptor_);
      return;
    }
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
  }
  throw std::runtime_error(std::string("cannot listen on a TCP port: ") + std::strerror(errno));
}

TcpListener::~TcpListener() { ::close(descriptor_); }

TcpSocket TcpListener::accept() const {
  return TcpSocket(accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC));
}

std::vector<std::string> host_addresses() {
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) {
    return {"127.0.0.1", "::1"};
  }
  std::vector<std::string> reachable;
  std::vector<std::string> local;
  for (const ifaddrs* each = interfaces; each != nullptr; each = each->ifa_next) {
    const int family = each->ifa_addr == nullptr ? AF_UNSPEC : each->ifa_addr->sa_family;
    if ((each->ifa_flags & IFF_UP) == 0 || (family != AF_INET && family != AF_INET6)) {
      continue;
    }
    std::array<char, NI_MAXHOST> text{};
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (getnameinfo(each->ifa_addr, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) !=
        0) {
      continue;
    }
    // A link-local address (fe80::...%eth0) means another link on another host.
    if (std::strchr(text.data(), '%') == nullptr) {
      ((each->ifa_flags & IFF_LOOPBACK) != 0 ? local : reachable).emplace_back(text.data());
    }
  }
  freeifaddrs(interfaces);
  reachable.insert(reachable.end(), local.begin(), local.end());
  return reachable;
}

}  // namespace narrowgauge::comm
