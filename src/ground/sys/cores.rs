//! How many cores this process may really use, and on which one it runs.
//!
//! In a container with a quota of two cores on a machine of 64, 64 workers would be throttled together, and whoever
//! spins burns the quota of the one it waits for. std's `available_parallelism` looks at the same places,
//! but rounds a quota of 1.5 cores down.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::{Call, Result};

/// Cores that this thread may run on, limited by the cgroup's CPU quota, rounded up; at least 1.
///
/// Reads files: ask once, not in a loop.
pub(crate) fn usable_cores() -> usize {
    let quota = fs::read_to_string("/proc/self/cgroup").ok().and_then(|groups| {
        quota_of(&groups, Path::new("/sys/fs/cgroup"), |path| fs::read_to_string(path).ok())
    });
    affinity().min(quota.unwrap_or(usize::MAX)).max(1)
}

/// The numbers of the cores that this thread may run on, in order.
pub(crate) fn allowed_cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).call("sched_getaffinity")?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect())
}

/// Keeps this thread, and what it will start, to one core.
pub(crate) fn stay_on(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).call("CPU_SET")?;
    sched_setaffinity(Pid::from_raw(0), &set).call("sched_setaffinity")
}

fn affinity() -> usize {
    match allowed_cores() {
        Ok(cores) => cores.len(),
        // EINVAL: more cores than the set has room for (sched_setaffinity(2)); std grows it.
        Err(_) => thread::available_parallelism().map_or(1, NonZeroUsize::get),
    }
}

/// The smallest quota of our groups and their ancestors: each of them limits what is below it.
fn quota_of(groups: &str, mount: &Path, read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    groups
        .lines()
        .filter_map(parse_group)
        .flat_map(|(version, group)| {
            let roots: &[&str] = match version {
                Version::Two => &["", "unified"],
                Version::One => &["cpu", "cpu,cpuacct", "cpuacct,cpu"],
            };
            let read = &read;
            roots.iter().flat_map(move |root| {
                // The path need not exist below our mount: a container sees its own group as the root.
                ancestors(&mount.join(root), group).filter_map(move |directory| match version {
                    Version::Two => parse_cpu_max(&read(&directory.join("cpu.max"))?),
                    Version::One => parse_cfs(
                        &read(&directory.join("cpu.cfs_quota_us"))?,
                        &read(&directory.join("cpu.cfs_period_us"))?,
                    ),
                })
            })
        })
        .min()
}

/// `root/a/b`, `root/a`, `root` for the group `/a/b`.
fn ancestors(root: &Path, group: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let group = Path::new(group.trim_start_matches('/')).to_path_buf();
    let root = root.to_path_buf();
    let chain: Vec<_> = group.ancestors().map(|ancestor| root.join(ancestor)).collect();
    chain.into_iter()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A line of /proc/self/cgroup, `number:controllers:path` (cgroups(7)), if it is about CPU time.
fn parse_group(line: &str) -> Option<(Version, &str)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    if number == "0" && controllers.is_empty() {
        Some((Version::Two, path))
    } else {
        controllers.split(',').any(|controller| controller == "cpu").then_some((Version::One, path))
    }
}

/// The contents of `cpu.max`: `$MAX $PERIOD`, where `max` means no limit (cgroup-v2.rst).
fn parse_cpu_max(text: &str) -> Option<usize> {
    let mut fields = text.split_whitespace();
    parse_cfs(fields.next()?, fields.next()?)
}

/// Cores, rounded up; `None` for no limit (`max`, or -1 in version 1) and for garbage.
fn parse_cfs(quota: &str, period: &str) -> Option<usize> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    usize::try_from(quota.div_ceil(period)).ok().map(|cores| cores.max(1))
}

/// From the text that the kernel shows to the number of workers.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_core() {
        assert!((1..=CpuSet::count()).contains(&usable_cores()));
    }

    #[test]
    fn quotas() {
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("200000 100000\n"), Some(2));
        assert_eq!(parse_cpu_max("150000 100000"), Some(2));
        assert_eq!(parse_cpu_max("1000 100000"), Some(1));
        for garbage in
            ["", "max", "200000", "200000 0", "-1 100000", "two 100000", "1 x", "99999999999999999999 1"]
        {
            assert_eq!(parse_cpu_max(garbage), None, "{garbage:?}");
        }
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("400000\n", "100000\n"), Some(4));
    }

    #[test]
    fn groups() {
        assert_eq!(parse_group("0::/user.slice/a:b"), Some((Version::Two, "/user.slice/a:b")));
        assert_eq!(parse_group("4:cpu,cpuacct:/docker/x"), Some((Version::One, "/docker/x")));
        assert_eq!(parse_group("5:cpuset:/x"), None);
        assert_eq!(parse_group("garbage"), None);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let files = |path: &Path| {
            Some(
                match path.to_str()? {
                    "/m/a/b/cpu.max" => "800000 100000",
                    "/m/a/cpu.max" => "300000 100000",
                    "/m/cpu.max" => "max 100000",
                    "/m/cpu,cpuacct/cpu.cfs_quota_us" => "500000\n",
                    "/m/cpu,cpuacct/cpu.cfs_period_us" => "100000\n",
                    _ => return None,
                }
                .to_owned(),
            )
        };
        let quota = |groups| quota_of(groups, Path::new("/m"), files);
        assert_eq!(quota("0::/a/b\n"), Some(3));
        assert_eq!(quota("0::/elsewhere\n"), None);
        assert_eq!(quota("3:cpu,cpuacct:/docker/1234\n1:name=systemd:/\n"), Some(5));
        assert_eq!(quota("3:cpu,cpuacct:/\n0::/a\n"), Some(3));
        assert_eq!(quota(""), None);
    }
}
