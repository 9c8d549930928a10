//! How a worker ended, and what becomes of what it had.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::crashers::Scene;
use super::crew::GIVEN_UP;
use super::events;
use super::job::{JobRef, Outcome};
use super::journal::Entry;
use super::messages::Who;
use super::meter::outcome_of_error;
use super::station::{Owned, Stage};
use super::verdict::{Verdict, Why};
use crate::error::{LossHint, LostDetails, TaskError, WorkerLost, signal_name};
use crate::ground::sys::clock;
use crate::ground::sys::process::ExitStatus;
use crate::protocol::lane::{Lane, Parcel, Violation};
use crate::protocol::wire::Parting;

/// All that is known about the end of a worker.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) who: Who,
    pub(crate) pid: u32,
    pub(crate) status: ExitStatus,
    pub(crate) max_rss_kib: u64,
    /// How far it was.
    pub(crate) stage: Stage,
    pub(crate) violation: Option<Violation>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) tasks_done: u64,
    pub(crate) ran_for: Option<Duration>,
    /// Why it left, if it had decided so itself.
    pub(crate) parting: Option<Parting>,
    /// Why it could not start or go on, in its own words.
    pub(crate) failure: Option<Arc<str>>,
    pub(crate) hint: Option<LossHint>,
    /// Whether a task was lost with it that nobody had decided to end.
    pub(crate) lost_task: bool,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Who { station, generation } = self.who;
        write!(f, "worker {station} (generation {generation}, pid {}) {}", self.pid, describe(self.status))?;
        self.failure.iter().try_for_each(|text| write!(f, ": {text}"))
    }
}

impl End {
    /// The end of a worker, of which nothing more is known yet.
    pub(crate) fn new(who: Who, pid: u32, status: ExitStatus, stage: Stage) -> Self {
        Self {
            who,
            pid,
            status,
            max_rss_kib: 0,
            stage,
            violation: None,
            verdict: None,
            tasks_done: 0,
            ran_for: None,
            parting: None,
            failure: None,
            hint: None,
            lost_task: false,
        }
    }

    /// Whether nobody had told it to end.
    pub(crate) fn is_loss(&self) -> bool {
        if self.lost_task && self.stage != Stage::Ending {
            return true;
        }
        if self.was_stuck() {
            return false;
        }
        let left = self.status == ExitStatus::Exited(0);
        if left && self.violation.is_none() && self.parting.is_some() {
            return false;
        }
        match (self.stage, &self.verdict) {
            (Stage::Leaving, Some(Verdict { victim: Some(_), .. })) => self.violation.is_some(),
            (Stage::Leaving, _) => !left || self.violation.is_some(),
            (Stage::Ending, _) => false,
            _ => true,
        }
    }

    /// Whether it was told to leave, and killed because it did not.
    fn was_stuck(&self) -> bool {
        let verdict = self.verdict.as_ref().filter(|_| self.violation.is_none());
        verdict.is_some_and(|verdict| verdict.why == Why::Stuck)
    }

    /// One line of the log: how it ended, why, and whether a successor follows.
    pub(crate) fn report(&self, core: &Core, replaced: bool) {
        if let Some(journal) = &core.journal {
            let how = format!("{}{}", describe(self.status), self.cause());
            journal.push(Entry::Ended { who: self.who, at_ns: clock::now_ns(), how });
        }
        let next = if replaced { "; it is replaced" } else { "" };
        if self.was_stuck() {
            return events::error(core, format_args!("{self}, because {}{next}", Why::Stuck.describe()));
        }
        if self.stage == Stage::Ending {
            return events::info(core, format_args!("{self}, as told"));
        }
        if let Some(why) = self.parting.filter(|_| !self.is_loss()) {
            return events::info(core, format_args!("{self}, since {why}{next}"));
        }
        match (&self.violation, &self.verdict) {
            (Some(Violation(what)), _) => {
                events::error(core, format_args!("{self} after it broke the protocol ({what}){next}"));
            }
            (None, Some(verdict)) if !self.is_loss() => {
                events::info(core, format_args!("{self}, because {}{next}", verdict.why.describe()));
            }
            _ => events::error(core, format_args!("{self}{next}")),
        }
    }

    /// Why, in a few words, if that is known.
    fn cause(&self) -> String {
        match (&self.violation, &self.verdict, self.parting) {
            (Some(Violation(what)), ..) => format!(" after it broke the protocol ({what})"),
            (_, Some(verdict), _) if self.was_stuck() => format!(", because {}", verdict.why.describe()),
            _ if self.stage == Stage::Ending => ", as told".to_owned(),
            (_, _, Some(why)) if !self.is_loss() => format!(", since {why}"),
            (_, Some(verdict), _) if !self.is_loss() => format!(", because {}", verdict.why.describe()),
            _ => self.failure.as_ref().map_or_else(String::new, |text| format!(": {text}")),
        }
    }

    /// What the task ends with that the worker had in hand, if nobody had decided on something else.
    fn lost(&self, attempts: u32) -> TaskError {
        let hint = self.violation.map(|violation| LossHint::Violation(violation.0)).or(self.hint);
        let (exit_code, signal) = match self.status {
            ExitStatus::Exited(code) => (Some(code), None),
            GIVEN_UP => (None, None),
            ExitStatus::Signaled(signal, _) => (None, Some(signal)),
        };
        let details = LostDetails {
            worker: self.who.station,
            generation: self.who.generation,
            pid: self.pid,
            exit_code,
            signal,
            max_rss_bytes: self.max_rss_kib.saturating_mul(1024),
            attempts,
            ran_for: self.ran_for,
            tasks_done: self.tasks_done,
            cause: self.failure.clone(),
            hint,
        };
        TaskError::WorkerLost(WorkerLost { inner: Arc::new(details) })
    }
}

impl Owned<'_> {
    /// Deals with what a dead worker leaves: its running task has its outcome, what had not started is the station's again.
    pub(crate) fn bury(&mut self, lane: Lane<JobRef>, end: &mut End) {
        self.note_cut_short(end.who, &lane, |index| {
            let victim = end.verdict.as_ref().and_then(|verdict| verdict.victim.as_ref());
            let decided = victim.filter(|(at, _)| *at == index && end.violation.is_none());
            decided.map_or("lost", |(_, error)| outcome_of_error(error))
        });
        let remains = lane.remains();
        let mut again = Vec::new();
        for (index, job, parcel) in remains.started {
            let victim = end.verdict.as_ref().and_then(|verdict| verdict.victim.as_ref());
            match victim.filter(|(at, _)| *at == index && end.violation.is_none()) {
                Some((_, error)) => self.fail(job, parcel, error.clone(), end),
                None => {
                    end.lost_task = true;
                    again.extend(self.lose(job, parcel, end));
                }
            }
        }
        if end.violation.is_none() && remains.valid {
            again.extend(remains.unstarted);
        } else {
            // What broke the protocol cannot be asked what it has started.
            for (job, parcel) in remains.unstarted {
                again.extend(self.lose(job, parcel, end));
            }
        }
        self.give_back(again);
    }

    /// The worker was lost with this in hand. It comes back if it is to be started again.
    fn lose(&mut self, mut job: JobRef, parcel: Parcel, end: &End) -> Option<(JobRef, Parcel)> {
        if parcel.batch.is_some() {
            match end.violation {
                // Its stream decides about the items.
                None => self.fail(job, parcel, end.lost(1), end),
                // Which of them have run cannot be known, and none starts twice.
                Some(_) => self.finish(job, Outcome::Failed(end.lost(1))),
            }
            return None;
        }
        let (again, attempts) = job.note_loss(self.core);
        if again {
            return Some((job, parcel));
        }
        self.fail(job, parcel, end.lost(attempts), end);
        None
    }

    fn fail(&mut self, job: JobRef, parcel: Parcel, error: TaskError, end: &End) {
        let saver = self.core.crashers.as_ref();
        let scene =
            saver.filter(|_| error.is_worker_lost() || error.is_timed_out()).map(|_| Scene::of(end, &error));
        let outcome = match (parcel.batch, saver, scene) {
            // Only its stream knows which item that was.
            (Some(_), _, scene) => Outcome::BatchLost(Box::new((parcel, Some(error), scene))),
            (None, Some(saver), Some(scene)) => {
                saver.keep(scene, parcel.code.about(&self.core.objects), parcel.input);
                Outcome::Failed(error)
            }
            (None, ..) => Outcome::Failed(error),
        };
        self.finish(job, outcome);
    }
}

pub(crate) fn describe(status: ExitStatus) -> String {
    match status {
        GIVEN_UP => "was given up, and ends when its task returns".to_owned(),
        ExitStatus::Exited(code) => format!("left with exit code {code}"),
        ExitStatus::Signaled(signal, _) => format!("was ended by {}", signal_name(signal)),
    }
}
