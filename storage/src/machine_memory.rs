//! How much memory this process may still take: what the machine has free, its control groups, its resource limits.
//!
//! Swap is not counted: a training that swaps does not come to an end.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// A limit on this process's memory that is this near to the end of the numbers is none (cgroup v1 writes 2⁶³ − 4096).
const UNLIMITED: u64 = 1 << 62;

/// What it is that leaves no more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `MemAvailable` of the machine.
    Machine,
    /// `memory.max` or `memory.high` of a control group, or cgroup v1's `memory.limit_in_bytes`.
    Cgroup,
    /// `RLIMIT_AS`, as `ulimit -v` sets it.
    AddressSpace,
    /// `RLIMIT_DATA`, as `ulimit -d` sets it.
    DataSegment,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "the machine",
            Self::Cgroup => "its cgroup",
            Self::AddressSpace => "ulimit -v",
            Self::DataSegment => "ulimit -d",
        })
    }
}

/// Memory that this process may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    /// Bytes; `u64::MAX` where the system does not say.
    pub num_bytes: u64,
    /// What leaves no more.
    pub limit: Limit,
}

/// A size for people: `12.3 MiB`.
#[must_use]
pub fn bytes_text(num_bytes: u64) -> String {
    let bytes = num_bytes as f64;
    match num_bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes / 1024f64.powi(2)),
        _ => format!("{:.2} GiB", bytes / 1024f64.powi(3)),
    }
}

/// What this process may still take, now.
#[must_use]
pub fn available() -> Available {
    let (address_space, data) = (getrlimit(Resource::As).current, getrlimit(Resource::Data).current);
    Sources { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into(), address_space, data }.available()
}

/// Where the numbers come from.
struct Sources {
    /// `/proc`.
    proc: PathBuf,
    /// `/sys/fs/cgroup`.
    cgroup: PathBuf,
    /// `RLIMIT_AS` in bytes.
    address_space: Option<u64>,
    /// `RLIMIT_DATA` in bytes.
    data: Option<u64>,
}

impl Sources {
    fn available(&self) -> Available {
        let status = read(&self.proc.join("self/status"));
        let used = |key: &str| kibibytes(&status, key).unwrap_or(0);
        let candidates = [
            (kibibytes(&read(&self.proc.join("meminfo")), "MemAvailable:"), Limit::Machine),
            (self.cgroups(), Limit::Cgroup),
            (self.address_space.map(|limit| limit.saturating_sub(used("VmSize:"))), Limit::AddressSpace),
            (self.data.map(|limit| limit.saturating_sub(used("VmData:"))), Limit::DataSegment),
        ];
        let known = candidates.into_iter().filter_map(|(num_bytes, limit)| Some((num_bytes?, limit)));
        let least = known.min_by_key(|(num_bytes, _)| *num_bytes);
        let (num_bytes, limit) = least.unwrap_or((u64::MAX, Limit::Machine));
        Available { num_bytes, limit }
    }

    /// The least that a control group of this process or one above it leaves.
    fn cgroups(&self) -> Option<u64> {
        let memberships = read(&self.proc.join("self/cgroup"));
        let left = memberships.lines().filter_map(|line| {
            // hierarchy-ID:controllers:path; version 2 has no controllers here.
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let path = Path::new(path.trim_start_matches('/'));
            if controllers.is_empty() {
                return self.least_above(&self.cgroup, path, left_in_v2);
            }
            controllers.split(',').any(|name| name == "memory").then_some(())?;
            self.least_above(&self.cgroup.join("memory"), path, left_in_v1)
        });
        left.min()
    }

    /// The least of the group at `path` below `root` and of all groups above it; a container may not see its own path.
    fn least_above(&self, root: &Path, path: &Path, left: fn(&Path) -> Option<u64>) -> Option<u64> {
        let groups = path.ancestors().map(|group| root.join(group)).filter(|group| group.starts_with(root));
        groups.filter_map(|group| left(&group)).min()
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The bytes of a line `KEY   123 kB`.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit in a file of a control group; none for `max` and what cannot be read.
fn limit(group: &Path, file: &str) -> Option<u64> {
    read(&group.join(file)).trim().parse().ok().filter(|limit| *limit < UNLIMITED)
}

/// Bytes of cached files, which the kernel gives back (reclaim).
fn reclaimable(group: &Path, keys: [&str; 2]) -> u64 {
    let stat = read(&group.join("memory.stat"));
    let fields = stat.lines().filter_map(|line| line.split_once(' '));
    fields.filter(|(key, _)| keys.contains(key)).filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum()
}

fn left_in_v2(group: &Path) -> Option<u64> {
    let limit = [limit(group, "memory.max"), limit(group, "memory.high")].into_iter().flatten().min()?;
    let used = read(&group.join("memory.current")).trim().parse::<u64>().unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable(group, ["inactive_file", "active_file"]))))
}

fn left_in_v1(group: &Path) -> Option<u64> {
    let limit = limit(group, "memory.limit_in_bytes")?;
    let used = read(&group.join("memory.usage_in_bytes")).trim().parse::<u64>().unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable(group, ["total_inactive_file", "total_active_file"]))))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine with 16 GiB free, whose process has 1 GiB of address space in use.
    fn machine(files: &[(&str, &str)]) -> (TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let own = [
            ("proc/meminfo", "MemTotal:       33554432 kB\nMemFree:  1 kB\nMemAvailable:   16777216 kB\n"),
            ("proc/self/status", "Name:\tmlomae\nVmSize:\t 1048576 kB\nVmData:\t  524288 kB\n"),
        ];
        for (name, text) in own.iter().chain(files) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sources = Sources {
            proc: dir.path().join("proc"),
            cgroup: dir.path().join("cgroup"),
            address_space: None,
            data: None,
        };
        (dir, sources)
    }

    #[test]
    fn the_least_limit_counts() {
        let (_dir, mut sources) = machine(&[]);
        assert_eq!(sources.available(), Available { num_bytes: 16 * GIB, limit: Limit::Machine });
        sources.address_space = Some(5 * GIB);
        assert_eq!(sources.available(), Available { num_bytes: 4 * GIB, limit: Limit::AddressSpace });
        sources.data = Some(GIB);
        assert_eq!(sources.available(), Available { num_bytes: GIB / 2, limit: Limit::DataSegment });
        sources.data = Some(1);
        assert_eq!(sources.available().num_bytes, 0);
        let nowhere = Sources { proc: "/nowhere".into(), cgroup: "/nowhere".into(), address_space: None, data: None };
        assert_eq!(nowhere.available().num_bytes, u64::MAX);
    }

    #[test]
    fn a_cgroup_of_version_2_counts_with_those_above_it_and_without_cached_files() {
        let (_dir, sources) = machine(&[
            ("proc/self/cgroup", "0::/a.slice/b.scope\n"),
            ("cgroup/a.slice/memory.max", "max\n"),
            ("cgroup/a.slice/memory.high", "3221225472\n"),
            ("cgroup/a.slice/memory.current", "2147483648\n"),
            ("cgroup/a.slice/memory.stat", "anon 5\ninactive_file 1073741824\nactive_file 536870912\n"),
            ("cgroup/a.slice/b.scope/memory.max", "8589934592\n"),
            ("cgroup/a.slice/b.scope/memory.current", "0\n"),
        ]);
        // 3 GiB less 2 GiB in use, of which 1.5 GiB can be had back.
        assert_eq!(sources.available(), Available { num_bytes: 5 * GIB / 2, limit: Limit::Cgroup });
        let (_dir, sources) = machine(&[
            // Within a container's own namespace, which may also name a place outside of it.
            ("proc/self/cgroup", "0::/../..\n"),
            ("cgroup/memory.max", "1073741824\n"),
            ("cgroup/memory.current", "73741824\n"),
        ]);
        assert_eq!(sources.available(), Available { num_bytes: 1_000_000_000, limit: Limit::Cgroup });
    }

    #[test]
    fn a_cgroup_of_version_1_counts_and_no_limit_is_none() {
        let (_dir, sources) = machine(&[
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n3:memory:/docker/abc\n0::/\n"),
            ("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cgroup/memory/docker/abc/memory.limit_in_bytes", "2147483648\n"),
            ("cgroup/memory/docker/abc/memory.usage_in_bytes", "1610612736\n"),
            ("cgroup/memory/docker/abc/memory.stat", "total_inactive_file 536870912\n"),
        ]);
        assert_eq!(sources.available(), Available { num_bytes: GIB, limit: Limit::Cgroup });
    }

    #[test]
    fn this_process_has_some() {
        assert!(available().num_bytes > 1 << 20);
    }
}
