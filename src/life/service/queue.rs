//! The service's threads, and what they do.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use super::{ENDING, Handling, Host, Request, let_go};
use crate::ground::monitor::{Condvar, Mutex};
use crate::ground::sys::advice;
use crate::life::core::Core;
use crate::life::{events, threads};
use crate::panics;

/// Something for a thread to do.
pub(super) enum Work {
    /// To answer a call, and those that follow at once.
    Answer(Arc<Core>, Request),
    /// To hand a call to the program's runtime.
    Spawn(Pin<Box<Handling>>),
    /// To poll a call that is answered here.
    Poll(Arc<Turn>),
}

impl Work {
    fn run(self) {
        match self {
            Self::Answer(core, call) => core.answer_calls(call),
            Self::Spawn(mut handling) => match handling.core.service().and_then(Host::spawner) {
                Some(spawn) => {
                    let _ = panics::guard(|| spawn(handling));
                    let_go(spawn);
                }
                None => handling.refuse(ENDING),
            },
            Self::Poll(turn) => turn.run(),
        }
    }

    /// Nobody is there to do it. Answers the call, so not while a station is owned.
    fn refuse(self, why: &str) {
        match self {
            Self::Answer(core, call) => core.refuse_call(&call, why),
            Self::Spawn(mut handling) => handling.refuse(why),
            Self::Poll(turn) => turn.refuse(why),
        }
    }
}

/// Work for the service's threads.
pub(super) struct Queue {
    threads_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
    stopped: bool,
}

impl Queue {
    pub(super) fn new(threads_max: usize) -> Arc<Self> {
        Arc::new(Self { threads_max, state: Mutex::default(), changed: Condvar::new() })
    }

    pub(super) fn push(self: &Arc<Self>, core: &Core, work: Work) {
        let mut state = self.state.lock();
        state.work.push_back(work);
        if state.idle >= state.work.len() || state.threads >= self.threads_max {
            drop(state);
            self.changed.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let queue = self.clone();
        let started = threads::spawn(format!("{}-service", core.name), move || queue.run());
        if let Err(error) = started {
            let abandoned = {
                let mut state = self.state.lock();
                state.threads -= 1;
                // A thread that there is comes to all of it, and so does one that somebody else is starting; if that fails too, he
                // is the one to come by here. Whoever pushed work meanwhile relied on one of them.
                if state.threads == 0 { std::mem::take(&mut state.work) } else { VecDeque::new() }
            };
            let advice = error.raw_os_error().map_or("", advice);
            let why = format!("a service thread could not be started: {error}{advice}");
            events::error(core, format_args!("{why}"));
            for work in abandoned {
                // What the future of a call does when it is dropped is its own affair; the other calls still have to be answered.
                let _ = panics::guard(|| work.refuse(&why));
            }
        }
    }

    /// The threads leave when there is nothing more to do.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(work) = state.work.pop_front() {
                drop(state);
                // A handler's own panics are answers; this is for what its values do when they are dropped.
                let _ = panics::guard(|| work.run());
                state = self.state.lock();
            } else if state.stopped {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

/// A call that is answered on the service's own thread: it is queued again whenever it is woken.
pub(super) struct Turn {
    queue: Arc<Queue>,
    core: Arc<Core>,
    future: Mutex<Option<Pin<Box<Handling>>>>,
    queued: AtomicBool,
}

impl Turn {
    pub(super) fn start(queue: Arc<Queue>, future: Pin<Box<Handling>>) {
        let core = future.core.clone();
        let turn = Self { queue, core, future: Mutex::new(Some(future)), queued: AtomicBool::new(false) };
        Arc::new(turn).schedule();
    }

    fn schedule(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let (queue, core) = (self.queue.clone(), self.core.clone());
        queue.push(&core, Work::Poll(self));
    }

    fn run(self: Arc<Self>) {
        self.queued.store(false, Ordering::Release);
        let waker = Waker::from(self.clone());
        let mut slot = self.future.lock();
        if let Some(future) = slot.as_mut()
            && future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
        {
            *slot = None;
        }
    }

    fn refuse(&self, why: &str) {
        // Nobody polls it: that is done by what is in the queue, and this was.
        let future = self.future.lock().take();
        if let Some(mut future) = future {
            future.refuse(why);
        }
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }
}
