//! The harness: a scenario in a process of its own, events across processes, and what `/proc` knows.
//!
//! ```ignore
//! #[test]
//! fn a_task_waits_for_a_gate() {
//!     scenario(|| {
//!         let pool = Pool::new(1).unwrap();
//!         let task = pool.submit(|_: ()| { counter(0).bump(); gate(0).wait(); 7 }, &());
//!         counter(0).wait_for(1); // it has started
//!         gate(0).open();
//!         assert_eq!(task.wait().unwrap(), 7);
//!     });
//! }
//! ```
//!
//! Gates, counters and barriers are words of one shared mapping that exists before any pool, and are named by number:
//! a task function, which captures nothing, can name them too. They need no descriptor. Every wait is bounded by
//! [`BOUND`].

#![allow(unsafe_code, reason = "futex calls and the shared mapping of events")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use forkring::{Builder, Error, Granularity, NoService, Payload, Pool, Shared, Task, TaskError};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No wait is longer. Reaching it is the failure "hang".
pub(crate) const BOUND: Duration = Duration::from_secs(30);
/// A scenario takes no longer, unless `FORKRING_BOUND_SECS` says so.
const SCENARIO_BOUND_SECS: u64 = 60;
/// Marks the processes of a scenario, in their environment.
const MARK: &str = "FORKRING_SCENARIO";
/// Says there that workers are to be threads.
const IN_PROCESS: &str = "FORKRING_SCENARIO_IN_PROCESS";
/// Says that `membarrier` is to be refused, in all scenarios.
const WITHOUT_MEMBARRIER: &str = "FORKRING_WITHOUT_MEMBARRIER";

/// What a scenario's process left: how it ended and what it printed.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// Includes what libtest prints.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Whether its workers were threads.
    pub(crate) in_process: bool,
}

impl Finished {
    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// Runs `body`, which must not capture, in a process of its own, and demands that it succeeds and that nothing of it is
/// left afterwards. To be called once, directly in a `#[test]` function.
pub(crate) fn scenario<F: FnOnce() + Copy>(body: F) {
    if let Some(finished) = scenario_output(body) {
        assert!(
            finished.status.success(),
            "the scenario failed: {}\n--- stdout\n{}\n--- stderr\n{}",
            finished.status,
            finished.stdout,
            finished.stderr
        );
    }
}

/// As [`scenario`], once with workers that are processes and once with workers that are threads of the scenario's process. Its
/// pools come from [`builder`] and [`new_pool`].
pub(crate) fn both<F: FnOnce() + Copy>(body: F) {
    if std::env::var_os(MARK).is_some() {
        return scenario(body);
    }
    for in_process in [false, true] {
        let Finished { status, stdout, stderr, .. } = run_in_child(test_path::<F>(), in_process);
        let where_to = if in_process { "threads" } else { "processes" };
        let output = format!("--- stdout\n{stdout}\n--- stderr\n{stderr}");
        assert!(status.success(), "the scenario failed with workers that are {where_to}: {status}\n{output}");
    }
}

/// As [`both`], for a scenario that is judged by what its processes have printed, and by how they ended.
pub(crate) fn both_output<F: FnOnce() + Copy>(body: F, judge: impl Fn(&Finished)) {
    if std::env::var_os(MARK).is_some() {
        return scenario(body);
    }
    for in_process in [false, true] {
        judge(&run_in_child(test_path::<F>(), in_process));
    }
}

/// Whether the workers of this scenario are threads.
pub(crate) fn in_process() -> bool {
    std::env::var_os(IN_PROCESS).is_some()
}

/// A builder of pools whose workers may be of both kinds.
pub(crate) type EitherBuilder = Builder<(), NoService, (), Shared>;

/// A builder of pools of the kind that the scenario is about.
pub(crate) fn builder() -> EitherBuilder {
    Pool::builder().in_process_if(in_process())
}

/// As `Pool::new`, of that kind.
pub(crate) fn new_pool(workers: usize) -> Result<Pool, Error> {
    builder().workers(workers).build()
}

/// Makes malloc give large blocks back when they are freed, instead of learning to keep them, so that the resident
/// memory of this process says what is in use (mallopt(3), M_MMAP_THRESHOLD).
pub(crate) fn return_freed_memory() {
    // SAFETY: sets a number.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
}

/// As [`scenario`], for a process that may end in any way: the test gets what it left and judges. `None`: this is
/// that process, and `body` has run.
#[must_use]
pub(crate) fn scenario_output<F: FnOnce() + Copy>(body: F) -> Option<Finished> {
    if std::env::var_os(MARK).is_some() {
        shared();
        // Many scenarios crash on purpose, and nobody reads the dumps.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
        if std::env::var_os(WITHOUT_MEMBARRIER).is_some() {
            deny_membarrier().unwrap();
        }
        body();
        return None;
    }
    Some(run_in_child(test_path::<F>(), false))
}

/// The test's path, from the name of its closure: `acceptance::submit::name::{{closure}}`.
fn test_path<F>() -> &'static str {
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").map_or(name, |(_, path)| path);
    name.split_once("::{{closure}}").map_or(name, |(path, _)| path)
}

fn run_in_child(path: &str, in_process: bool) -> Finished {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let mark = format!("{}.{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
    // Files, not pipes: a process that is left behind must not keep the parent reading.
    let mut stdout = File::from(memfd_create(c"stdout", MFdFlags::MFD_CLOEXEC).unwrap());
    let mut stderr = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC).unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", path, "--nocapture", "--test-threads=1"])
        .env(MARK, &mark)
        .envs(in_process.then_some((IN_PROCESS, "1")))
        .env_remove("RUST_BACKTRACE")
        .stdin(std::process::Stdio::null())
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = child.id();
    let bound = std::env::var("FORKRING_BOUND_SECS").ok().and_then(|secs| secs.parse().ok());
    let deadline = Instant::now() + Duration::from_secs(bound.unwrap_or(SCENARIO_BOUND_SECS));
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let left = left_behind(group, &mark, status.is_some());
    for process in &left {
        let _ = kill(Pid::from_raw(process.pid as i32), Signal::SIGKILL);
    }
    if status.is_none() {
        let _ = child.wait();
    }
    let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
    let output = format!("--- stdout\n{stdout}\n--- stderr\n{stderr}");
    let Some(status) = status else { panic!("hang: {left:#?}\n{output}") };
    assert!(stdout.contains("running 1 test"), "no test is called {path:?}\n{output}");
    assert!(left.is_empty(), "processes are left ({status}): {left:#?}\n{output}");
    Finished { status, stdout, stderr, in_process }
}

/// The living processes of a scenario; if it has ended, they are given time to go.
fn left_behind(group: u32, mark: &str, ended: bool) -> Vec<Process> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // A zombie that nobody of the scenario's can reap any more is init's business.
        let alive = |p: &Process| p.state != 'Z' && (p.group == group || marked(p.pid, mark));
        let left: Vec<Process> = processes().into_iter().filter(alive).collect();
        if left.is_empty() || !ended || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process carries the scenario's mark, whatever group it has moved to.
fn marked(pid: u32, mark: &str) -> bool {
    let entry = format!("{MARK}={mark}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|&b| b == 0).any(|one| one == entry.as_bytes()))
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

// ---- events across processes

const EVENTS: usize = 256;
const CELLS: usize = 4096;

/// One mapping, shared with every process that is forked after it was made.
#[repr(C)]
struct Events {
    gates: [AtomicU32; EVENTS],
    counters: [AtomicU32; EVENTS],
    barriers: [AtomicU32; EVENTS],
    cells: [AtomicU64; CELLS],
}

fn shared() -> &'static Events {
    static SHARED: OnceLock<&'static Events> = OnceLock::new();
    SHARED.get_or_init(|| {
        let size = std::num::NonZeroUsize::new(size_of::<Events>()).unwrap();
        let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let address = unsafe { mmap_anonymous(None, size, prot, flags) }.unwrap();
        // SAFETY: large enough, page-aligned, zeroed, which is a valid value of atomics, and never unmapped.
        unsafe { address.cast::<Events>().as_ref() }
    })
}

/// A word that counts up, and on which processes can wait.
#[derive(Clone, Copy)]
pub(crate) struct Counter(&'static AtomicU32);

/// Counter `n` of this scenario, `0 .. 256`. Starts at 0.
pub(crate) fn counter(n: usize) -> Counter {
    Counter(&shared().counters[n])
}

impl Counter {
    /// Adds one; wakes who waits. Returns the count before.
    pub(crate) fn bump(self) -> u32 {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        futex_wake(self.0);
        before
    }

    pub(crate) fn get(self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Waits until the count has reached `least`.
    #[track_caller]
    pub(crate) fn wait_for(self, least: u32) {
        let deadline = Instant::now() + BOUND;
        loop {
            let now = self.get();
            if now >= least {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "hang: a counter stays at {now}, below {least}");
            futex_wait(self.0, now, left);
        }
    }
}

/// A gate that opens once.
#[derive(Clone, Copy)]
pub(crate) struct Gate(Counter);

/// Gate `n` of this scenario, `0 .. 256`. Starts closed.
pub(crate) fn gate(n: usize) -> Gate {
    Gate(Counter(&shared().gates[n]))
}

impl Gate {
    pub(crate) fn open(self) {
        self.0.bump();
    }

    pub(crate) fn is_open(self) -> bool {
        self.0.get() > 0
    }

    /// Waits until it is open.
    #[track_caller]
    pub(crate) fn wait(self) {
        self.0.wait_for(1);
    }
}

/// Meets `parties - 1` others at barrier `n`, `0 .. 256`. Can be used again, by the same number of parties.
#[track_caller]
pub(crate) fn meet(n: usize, parties: u32) {
    let barrier = Counter(&shared().barriers[n]);
    let before = barrier.bump();
    barrier.wait_for((before / parties + 1) * parties);
}

/// Cell `n` of this scenario, `0 .. 4096`: a shared number without waiting. Starts at 0.
pub(crate) fn cell(n: usize) -> &'static AtomicU64 {
    &shared().cells[n]
}

/// The time-out is the caller's to notice.
fn futex_wait(word: &AtomicU32, value: u32, limit: Duration) {
    let limit = libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    // SAFETY: the word lives for ever; the time is read only. Not the private variant: other processes wait too.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const limit) };
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word lives for ever.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Waits for what only `/proc` shows: the one place that may pause and look again.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < deadline, "hang: {what} never came true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

// ---- what /proc knows

/// A process as `/proc/<pid>/stat` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    /// `R`, `S`, `D`, `T`, `Z` …
    pub(crate) state: char,
    pub(crate) name: String,
    /// User and system time, in ticks of 10 ms.
    pub(crate) ticks: u64,
}

/// A process, if it exists; a zombie does.
pub(crate) fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        name: head.split_once('(')?.1.to_owned(),
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    })
}

/// All processes.
pub(crate) fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The descendants of this process, zombies too: zygotes, workers and what they have started.
pub(crate) fn children() -> Vec<Process> {
    descendants(std::process::id())
}

/// The descendants of a process, zombies too.
pub(crate) fn descendants(root: u32) -> Vec<Process> {
    let mut by_parent: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    for process in processes() {
        by_parent.entry(process.parent).or_default().push(process);
    }
    let (mut found, mut open) = (Vec::new(), vec![root]);
    while let Some(pid) = open.pop() {
        for process in by_parent.remove(&pid).unwrap_or_default() {
            open.push(process.pid);
            found.push(process);
        }
    }
    found
}

/// The pid of the only zygote of this process.
pub(crate) fn zygote() -> u32 {
    let mut zygotes: Vec<Process> = children()
        .into_iter()
        .filter(|p| p.parent == std::process::id() && p.name == "forkring-zygote")
        .collect();
    assert_eq!(zygotes.len(), 1, "one zygote: {zygotes:?}");
    zygotes.remove(0).pid
}

/// Waits until a process has gone and been reaped.
#[track_caller]
pub(crate) fn gone(pid: u32) {
    eventually("the end of a process", || process(pid).is_none());
}

/// How many descriptors this process has.
pub(crate) fn count_fds() -> usize {
    // glibc's allocator opens one for a moment where a thread has freed much.
    let is_ours =
        |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| !to.ends_with("vm/overcommit_memory"));
    // One is the directory that is being read.
    fs::read_dir("/proc/self/fd").unwrap().flatten().filter(is_ours).count() - 1
}

/// The descriptors of a process, by number, with what they refer to.
pub(crate) fn fds_of(pid: u32) -> BTreeMap<i32, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            found.insert(
                entry.file_name().to_str().unwrap().parse().unwrap(),
                target.to_string_lossy().into_owned(),
            );
        }
    }
    if pid == std::process::id() {
        // The directory that was being read is closed again.
        found.retain(|_, target| !target.ends_with(&format!("/proc/{pid}/fd")) && target != "/proc/self/fd");
    }
    found
}

/// Sums `field` (such as `Private_Dirty`) over `/proc/<pid>/<file>`, in KiB.
fn kib(pid: u32, file: &str, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let of_line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        fields.contains(&name).then(|| value.split_whitespace().next()?.parse::<u64>().ok())?
    };
    text.lines().filter_map(of_line).sum()
}

/// Resident memory, shared pages included.
pub(crate) fn rss_kib(pid: u32) -> u64 {
    kib(pid, "smaps_rollup", &["Rss"])
}

/// Memory that no other process has.
pub(crate) fn private_kib(pid: u32) -> u64 {
    kib(pid, "smaps_rollup", &["Private_Clean", "Private_Dirty"])
}

/// The lines of `/proc/<pid>/status`, such as `SigBlk` or `Threads`.
pub(crate) fn status_of(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let entry = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

/// What a task ends with, within the bound, or it is a hang.
#[track_caller]
pub(crate) fn outcome<R: Payload>(mut task: Task<R>) -> Result<R, TaskError> {
    task.wait_timeout(BOUND).expect("hang: a task has no outcome")
}

/// Errors that are expected go nowhere.
pub(crate) fn quietly() {
    forkring::hooks::set_log_error(|_| ());
}

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has [`errors`] told what goes to the error hook from here on.
pub(crate) fn collect_errors() {
    forkring::hooks::set_log_error(|message| ERRORS.lock().unwrap().push(message.to_owned()));
}

pub(crate) fn errors() -> Vec<String> {
    ERRORS.lock().unwrap().clone()
}

/// A task that counts itself in counter 0 and waits at gate 0.
pub(crate) fn held(n: u32) -> u32 {
    counter(0).bump();
    gate(0).wait();
    n
}

pub(crate) fn fixed(n: usize) -> Granularity {
    Granularity::Fixed(n)
}

/// No process is left, and no descriptor but so many.
#[track_caller]
pub(crate) fn nothing_left(fds: usize) {
    assert!(children().is_empty(), "{:?}", children());
    assert_eq!(count_fds(), fds, "{:#?}", fds_of(std::process::id()));
}

/// Root may have as many processes as it likes: from here on their limit holds for this one.
pub(crate) fn cease_to_be_root() {
    if nix::unistd::geteuid().is_root() {
        let nobody = nix::unistd::Uid::from_raw(65534);
        nix::unistd::setresuid(nobody, nobody, nobody).unwrap();
        // `/proc` would be root's else.
        nix::sys::prctl::set_dumpable(true).unwrap();
    }
}

/// Sends a signal.
#[track_caller]
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// Forks this process. The child runs `f` and leaves with what it returns; without `exec`, so it keeps every
/// descriptor and mapping. Returns its pid.
pub(crate) fn fork_and(f: impl FnOnce() -> i32) -> u32 {
    // SAFETY: glibc keeps malloc usable, and the children of these tests take no other lock that a thread may hold.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child.as_raw() as u32,
        nix::unistd::ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
            // SAFETY: no conditions; nothing of the parent's is run or flushed twice.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Waits for a child of this process and reaps it. Its exit code.
#[track_caller]
pub(crate) fn exit_code_of(pid: u32) -> i32 {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let mut code = None;
    eventually("the end of a child", || {
        match waitpid(Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => false,
            WaitStatus::Exited(_, exit) => {
                code = Some(exit);
                true
            }
            other => panic!("{other:?}"),
        }
    });
    code.unwrap()
}

/// From here on `membarrier` is a system call that the kernel does not have, to this process and whatever it forks.
pub(crate) fn deny_membarrier() -> Result<(), nix::errno::Errno> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
    nix::sys::prctl::set_no_new_privs()?;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    // The number of the call is the first word of what a filter sees.
    let step = |code: u32, k, jf| sock_filter { code: code as u16, jt: 0, jf, k };
    let mut steps = [
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, libc::SYS_membarrier as u32, 1),
        step(BPF_RET | BPF_K, refuse, 0),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let (mode, all_threads) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the program and its steps live until the call returns, which copies them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, mode, all_threads, &raw const program) };
    nix::errno::Errno::result(done).map(drop)
}

/// Gives a signal a handler that does nothing, or makes this process ignore it.
pub(crate) fn disposition(signal: Signal, ignored: bool) {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = if ignored { SigHandler::SigIgn } else { SigHandler::Handler(nothing) };
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe.
    unsafe { sigaction(signal, &action) }.unwrap();
}
