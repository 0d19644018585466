#define USE_C10D_GLOO

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "vgen/dist/detail/backends.h"

namespace vgen::dist::detail {

c10::intrusive_ptr<c10d::Backend> make_gloo(const BackendPlace& place) {
  using Gloo = c10d::ProcessGroupGloo;
  auto options = Gloo::Options::create(std::chrono::milliseconds(place.timeout_ms));
  options->devices.push_back(place.interface.empty()
                                 ? Gloo::createDeviceForHostname(place.address)
                                 : Gloo::createDeviceForInterface(place.interface));
  return c10::make_intrusive<Gloo>(place.store, static_cast<int>(place.rank),
                                   static_cast<int>(place.size), std::move(options));
}

std::string address_towards(const std::string& master) {
  const std::string fallback = "127.0.0.1";
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(master.c_str(), "9", &hints, &found) != 0) return fallback;
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> guard(found, &freeaddrinfo);
  const int fd = ::socket(found->ai_family, SOCK_DGRAM, 0);
  if (fd < 0) return fallback;
  // Connecting a datagram socket sends nothing: it chooses the route, and with it the own address.
  sockaddr_storage own{};
  socklen_t length = sizeof(own);
  const bool is_known = ::connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
                        ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0;
  ::close(fd);
  std::array<char, NI_MAXHOST> text{};
  if (!is_known || getnameinfo(reinterpret_cast<const sockaddr*>(&own), length, text.data(),
                               text.size(), nullptr, 0, NI_NUMERICHOST) != 0) {
    return fallback;
  }
  return text.data();
}

}  // namespace vgen::dist::detail
