//! What a worker does to its own process: to be a leader of a group before anything else, then its environment,
//! priority and core before `init`, and a limit on its addresses once it is ready.

#![allow(unsafe_code, reason = "setenv in a process with one thread")]

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

use crate::error::Error;
use crate::ground::sys::usage::{self, Statm};
use crate::ground::sys::{Result, cores, process};

/// Which cores workers run on. See [`Builder::affinity`](crate::Builder::affinity).
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Where the program may run.
    #[default]
    Inherit,
    /// Each worker on one of the cores that the program may run on: worker 0 on the first, and so on, round and round.
    Spread,
    /// Worker `i` on core `cores[i % cores.len()]`.
    Cores(Vec<usize>),
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) process_group: bool,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) nice: i32,
    pub(crate) affinity: Affinity,
    pub(crate) address_space_bytes: Option<u64>,
}

/// A [`Setup`] that has been checked, in the form that a worker needs.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) process_group: bool,
    env: Vec<(CString, CString)>,
    nice: i32,
    /// Worker `i` runs on the core at `i`, round and round; anywhere if there is none.
    cores: Vec<usize>,
    address_space_bytes: Option<u64>,
}

impl Setup {
    pub(crate) fn check(self) -> std::result::Result<Checked, Error> {
        let Self { process_group, env, nice, affinity, address_space_bytes } = self;
        if !(-40..=40).contains(&nice) {
            return Err(Error::new(format!("a niceness goes from -20 to 19; adding {nice} makes no sense")));
        }
        if address_space_bytes == Some(0) {
            return Err(Error::new("max_address_space of 0 bytes leaves a worker nothing to run tasks in"));
        }
        let env = env.into_iter().map(check_variable).collect::<std::result::Result<_, _>>()?;
        let cores = affinity.cores()?;
        Ok(Checked { process_group, env, nice, cores, address_space_bytes })
    }
}

fn check_variable((key, value): (OsString, OsString)) -> std::result::Result<(CString, CString), Error> {
    let wrong = |what| Error::new(format!("worker_env({key:?}, …): {what}"));
    let bytes = key.clone().into_vec();
    if bytes.is_empty() || bytes.contains(&b'=') {
        return Err(wrong("a name is not empty and has no '=' in it"));
    }
    match (CString::new(bytes), CString::new(value.into_vec())) {
        (Ok(key), Ok(value)) => Ok((key, value)),
        _ => Err(wrong("a variable has no zero byte in it")),
    }
}

impl Affinity {
    fn cores(self) -> std::result::Result<Vec<usize>, Error> {
        if self == Self::Inherit {
            return Ok(Vec::new());
        }
        let allowed = cores::allowed_cores()
            .map_err(|error| Error::caused("Builder::affinity cannot tell which cores there are", error))?;
        match self {
            Self::Inherit | Self::Spread => Ok(allowed),
            Self::Cores(cores) if cores.is_empty() => {
                Err(Error::new("Affinity::Cores is empty; name at least one core, or use Affinity::Inherit"))
            }
            Self::Cores(cores) => match cores.iter().find(|core| !allowed.contains(core)) {
                Some(core) => Err(Error::new(format!(
                    "Affinity::Cores has core {core}; this program may run on {allowed:?}"
                ))),
                None => Ok(cores),
            },
        }
    }
}

impl Checked {
    /// How many different cores `workers` workers run on, of so many usable ones.
    pub(crate) fn cores(&self, workers: usize, usable: usize) -> usize {
        if self.cores.is_empty() {
            return usable;
        }
        let mut used: Vec<usize> = self.cores.iter().take(workers).copied().collect();
        used.sort_unstable();
        used.dedup();
        // As many workers as cores leave none for those who wait for them.
        if used.len() < workers { used.len() } else { usable }
    }

    /// In a worker, before any code of the user's.
    pub(crate) fn begin(&self, worker: usize) -> Result<()> {
        for (key, value) in &self.env {
            // SAFETY: no code of the user's has run in this process, which was forked by one with one thread.
            unsafe { process::set_env(key, value) }?;
        }
        if self.nice != 0 {
            process::add_nice(self.nice)?;
        }
        if !self.cores.is_empty() {
            cores::stay_on(self.cores[worker % self.cores.len()])?;
        }
        Ok(())
    }

    /// In a worker that is ready.
    pub(crate) fn ready(&self) -> Result<()> {
        let Some(more) = self.address_space_bytes else { return Ok(()) };
        let now = Statm::open()?.read()?.address_bytes;
        usage::limit_address_space(now.saturating_add(more))
    }

    /// In a worker that leaves in good order: what it leaves behind stays.
    pub(crate) fn end(&self) {
        if self.process_group {
            // A task that made this process the leader of a session has undone the option.
            let _ = process::rejoin_parents_group();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(setup: Setup) -> String {
        setup.check().unwrap_err().to_string()
    }

    #[test]
    fn nonsense_is_refused() {
        let variable =
            |key: &str, value: &str| Setup { env: vec![(key.into(), value.into())], ..Setup::default() };
        assert!(variable("A", "").check().is_ok() && variable("A B", "=").check().is_ok());
        for (key, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")] {
            assert!(error(variable(key, value)).contains("worker_env"), "{key:?} {value:?}");
        }
        assert!(error(Setup { nice: 41, ..Setup::default() }).contains("41"));
        assert!(error(Setup { nice: i32::MIN, ..Setup::default() }).contains("niceness"));
        assert!(
            error(Setup { address_space_bytes: Some(0), ..Setup::default() }).contains("max_address_space")
        );
        let cores = |cores| Setup { affinity: Affinity::Cores(cores), ..Setup::default() };
        assert!(error(cores(vec![])).contains("empty"));
        assert!(error(cores(vec![100_000])).contains("100000"));
        assert!(error(cores(vec![usize::MAX])).contains("may run on"));
    }

    #[test]
    fn cores_go_round() {
        let first = cores::allowed_cores().unwrap()[0];
        let setup = Setup { affinity: Affinity::Cores(vec![first, first]), ..Setup::default() };
        let checked = setup.check().unwrap();
        assert_eq!(checked.cores, [first, first]);
        assert_eq!((checked.cores(1, 8), checked.cores(2, 8), checked.cores(5, 8)), (8, 1, 1));
        let spread = Setup { affinity: Affinity::Spread, ..Setup::default() }.check().unwrap();
        assert_eq!(spread.cores, cores::allowed_cores().unwrap());
        assert_eq!(Setup::default().check().unwrap().cores(7, 3), 3);
    }
}
