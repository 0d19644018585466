#include "vgen/io/atomic_file.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>
#include <iostream>
#include <optional>

#include "support/support.h"
#include "vgen/io/safetensors.h"

using namespace vgen;
using Catch::Contains;
using test::files_in;
namespace fs = std::filesystem;

namespace {

// What `body` throws in a child process that may change limits and mounts: its message, "" if
// nothing was thrown, no value if the child died of a signal.
std::optional<std::string> error_in_child(const std::function<void()>& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::string message;
    try {
      body();
    } catch (const Error& error) {
      message = error.what();
    } catch (const std::exception& error) {
      message = std::string("not an Error: ") + error.what();
    }
    const bool is_written =
        ::write(ends[1], message.data(), message.size()) == static_cast<ssize_t>(message.size());
    ::_exit(is_written ? 0 : 1);
  }
  ::close(ends[1]);
  std::string message;
  char buffer[256];
  for (ssize_t count = 0; (count = ::read(ends[0], buffer, sizeof(buffer))) > 0;) {
    message.append(buffer, static_cast<size_t>(count));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return std::nullopt;
  return message;
}

}  // namespace

TEST_CASE("atomic file: appears whole on commit, replaces the old one", "[io]") {
  const test::TempDir dir;
  const std::string path = dir / "a.txt";
  test::write_file(path, "old");
  {
    io::AtomicFile file(path);
    file.write("new ");
    file.write(std::string(3 << 20, 'x'));  // more than the buffer
    file.write_zeros(2);
    file.patch(0, std::as_bytes(std::span("N", 1)));
    CHECK(file.size() == 4 + (3 << 20) + 2);
    CHECK(test::read_file(path) == "old");
    file.commit();
  }
  CHECK(test::read_file(path) == "New " + std::string(3 << 20, 'x') + std::string(2, '\0'));
  CHECK(files_in(dir.path()) == std::vector<std::string>{"a.txt"});
}

TEST_CASE("atomic file: without commit nothing is left", "[io]") {
  const test::TempDir dir;
  test::write_file(dir / "a.txt", "old");
  {
    io::AtomicFile file(dir / "a.txt");
    file.write("new");
    CHECK(files_in(dir.path()).size() == 2);
  }
  CHECK(test::read_file(dir / "a.txt") == "old");
  CHECK(files_in(dir.path()) == std::vector<std::string>{"a.txt"});
}

TEST_CASE("atomic file: a new file gets the mode of the umask, a link stays a link", "[io]") {
  const test::TempDir dir;
  io::write_file_atomically(dir / "a.txt", "a");
  CHECK((fs::status(dir / "a.txt").permissions() & fs::perms::owner_write) != fs::perms::none);
  fs::create_symlink("a.txt", dir / "link");
  io::write_file_atomically(dir / "link", "b");
  CHECK(fs::is_symlink(dir / "link"));
  CHECK(test::read_file(dir / "a.txt") == "b");
}

TEST_CASE("atomic file: places that cannot be written", "[io]") {
  const test::TempDir dir;
  CHECK_THAT(test::error_of([&] { io::AtomicFile file(dir.path()); }), Contains("is a folder"));
  CHECK_THAT(test::error_of([&] { io::AtomicFile file(dir / "no/such/a.txt"); }),
             Contains("no/such does not exist; make it first"));
  CHECK_THAT(test::error_of([&] { io::AtomicFile file("/dev/full"); }),
             Contains("/dev/full: exists and is not a regular file"));
  CHECK_THAT(test::error_of([&] { io::AtomicFile file(""); }), Contains("without a name"));
  test::write_file(dir / "file", "");
  CHECK_THAT(test::error_of([&] { io::AtomicFile file(dir / "file/a.txt"); }),
             Contains("file does not exist"));
  const auto message = error_in_child([&] {
    fs::permissions(dir.path(), fs::perms::owner_read | fs::perms::owner_exec);
    if (::geteuid() == 0 && ::seteuid(65534) != 0) return;
    io::AtomicFile file(dir / "a.txt");
  });
  fs::permissions(dir.path(), fs::perms::owner_all);
  REQUIRE(message.has_value());
  CHECK_THAT(*message, Contains("denied") || Contains("does not exist"));
}

TEST_CASE("atomic file: a file-size limit leaves the old file", "[io]") {
  const test::TempDir dir;
  const std::string path = dir / "model.safetensors";
  const std::vector<float> values(1 << 20);
  io::write_safetensors(path, {{"w", io::make_array<float>({1}, {7})}});
  const std::string before = test::read_file(path);
  const auto message = error_in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    io::write_safetensors(path, {{"w", io::make_array<float>({1 << 20}, values)}});
  });
  REQUIRE(message.has_value());
  CHECK_THAT(*message, Contains(path + ": cannot write: File too large") &&
                           Contains(" free in " + dir.path()) && Contains("ulimit -f"));
  CHECK(test::read_file(path) == before);
  CHECK(files_in(dir.path()) == std::vector<std::string>{"model.safetensors"});
}

TEST_CASE("atomic file: a full disk leaves the old file", "[io]") {
  const test::TempDir dir;
  const auto message = error_in_child([&] {
    // A small file system of our own, gone with this process.
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", dir.path().c_str(), "tmpfs", 0, "size=1M") != 0) {
      throw_error(ErrorCode::kUnavailable, "no mount");
    }
    io::write_file_atomically(dir / "a", "old");
    std::string complaint = "nothing was thrown";
    try {
      io::write_file_atomically(dir / "a", std::string(4 << 20, 'x'));
    } catch (const Error& error) {
      complaint = error.what();
    }
    const bool is_intact = test::read_file(dir / "a") == "old" && files_in(dir.path()).size() == 1;
    throw_error(ErrorCode::kUnavailable, is_intact ? "intact; " : "harmed; ", complaint);
  });
  REQUIRE(message.has_value());
  if (*message == "no mount") {
    std::cout << "skipped here: mounting a small file system needs privileges" << std::endl;
    return;
  }
  CHECK_THAT(*message, Catch::StartsWith("intact; ") &&
                           Contains("/a: cannot write: No space left on device; ") &&
                           Contains("free some space or choose another folder"));
}

TEST_CASE("atomic file: a kill in the middle leaves the old file", "[io]") {
  const test::TempDir dir;
  const std::string path = dir / "a.txt";
  test::write_file(path, "old");
  const auto message = error_in_child([&] {
    io::AtomicFile file(path);
    file.write(std::string(3 << 20, 'x'));
    ::raise(SIGKILL);
  });
  CHECK_FALSE(message.has_value());
  CHECK(test::read_file(path) == "old");
}
