//! Models of the claim word: whoever races whom, every request has exactly one owner and none is lost.
//!
//! Each actor reports what it came to own; the reports are put together after all have ended.

use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use super::{Claim, ClaimWord};

/// Requests that are published before the actors start.
const SENT: u64 = 3;

type Owned = Vec<u64>;

/// The worker: claims what it finds, one by one, until there is nothing more to start.
fn worker(word: &ClaimWord) -> Owned {
    let mut owned = Vec::new();
    let mut next = 0;
    while next < SENT {
        match word.claim(next) {
            Claim::Won => {
                owned.push(next);
                next += 1;
            }
            Claim::Moved(to) => {
                assert!(to > next, "a count never goes back");
                next = to;
            }
            Claim::Sealed => break,
        }
    }
    owned
}

/// Seals; what is unstarted then is the sealer's.
fn seal(word: &ClaimWord) -> Owned {
    (word.seal()..SENT).collect()
}

fn spawn(word: &Arc<ClaimWord>, actor: impl FnOnce(&ClaimWord) -> Owned + 'static) -> JoinHandle<Owned> {
    let word = word.clone();
    thread::spawn(move || actor(&word))
}

fn assert_one_owner_each(reports: impl IntoIterator<Item = Owned>) {
    let mut owned: Owned = reports.into_iter().flatten().collect();
    owned.sort_unstable();
    assert_eq!(owned, (0..SENT).collect::<Owned>());
}

#[test]
fn two_claims_of_one_request_have_one_winner() {
    loom::model(|| {
        let word = Arc::new(ClaimWord::new());
        let other = spawn(&word, worker);
        let mine = worker(&word);
        assert_one_owner_each([mine, other.join().expect("the other worker ends")]);
    });
}

#[test]
fn taking_back_races_claims() {
    loom::model(|| {
        let word = Arc::new(ClaimWord::new());
        let worker = spawn(&word, worker);
        let mut taken: Owned = word.take_back(SENT, 1).collect();
        taken.extend(word.take_back(SENT, SENT));
        assert_one_owner_each([taken, worker.join().expect("the worker ends")]);
    });
}

#[test]
fn sealing_races_claims() {
    loom::model(|| {
        let word = Arc::new(ClaimWord::new());
        let worker = spawn(&word, worker);
        let sealed = seal(&word);
        let at = word.load();
        assert!(at.sealed && word.take_back(SENT, SENT).is_empty(), "a sealed word never moves");
        assert_one_owner_each([sealed, worker.join().expect("the worker ends")]);
        assert_eq!(word.load(), at, "a sealed word never moves");
    });
}

#[test]
fn sealing_races_claims_and_taking_back() {
    loom::model(|| {
        let word = Arc::new(ClaimWord::new());
        let worker = spawn(&word, worker);
        let taker = spawn(&word, |word| word.take_back(SENT, 2).collect());
        let sealed = seal(&word);
        let worker = worker.join().expect("the worker ends");
        let taken = taker.join().expect("the taker ends");
        assert_one_owner_each([sealed, worker, taken]);
    });
}
