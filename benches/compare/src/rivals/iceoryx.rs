//! iceoryx2: publish-subscribe and request-response with a forked child, both sides polling.

use std::error::Error;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};

use iceoryx2::node::Node;
use iceoryx2::port::client::Client;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{LogLevel, NodeBuilder, ServiceName, ipc, set_log_level};

use crate::raw::{Child, PAUSE, spin_until};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A number of the protocol's own, beyond those that are measured: the first exchange after waking.
const HELLO: u64 = u64::MAX / 2;

const WAKE: u8 = 1;
const LEAVE: u8 = 0;

/// What both patterns have in common on the parent's side: a child that polls while it is awake and otherwise sleeps.
/// Nothing of it survives: the child leaves in good order, so that the services' files go, too.
struct Poller {
    /// What the child waits for: [`WAKE`] or [`LEAVE`]. Not the end of the pipe, since other children inherit it.
    waker: PipeWriter,
    child: Option<Child>,
}

impl Poller {
    /// Forks a child that says when it has opened its side.
    fn start(serve: impl FnOnce(PipeReader, &mut dyn FnMut()) -> Result<()>) -> Result<Self> {
        set_log_level(LogLevel::Error);
        let (sleeper, waker) = pipe()?;
        let (mut ready, mut announce) = pipe()?;
        let child = Child::fork(|| {
            if let Err(error) = serve(sleeper, &mut || announce.write_all(&[1]).expect("a parent")) {
                eprintln!("iceoryx2, in the child: {error}");
            }
        });
        // So that a child that fails is the end of the pipe.
        drop(announce);
        ready.read_exact(&mut [0])?;
        Ok(Self { waker, child: Some(child) })
    }

    fn wake(&mut self) {
        self.waker.write_all(&[WAKE]).expect("a child that listens");
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // A child that is gone already is joined all the same.
        let _ = self.waker.write_all(&[LEAVE]);
        if let Some(child) = self.child.take() {
            child.join();
        }
    }
}

/// The child's side: whether it is to poll, or to leave.
fn woken(sleeper: &mut PipeReader) -> bool {
    let mut order = [LEAVE];
    sleeper.read_exact(&mut order).is_ok() && order == [WAKE]
}

fn name(direction: &str) -> Result<ServiceName> {
    Ok(ServiceName::new(&format!("forkring-compare/{}/{direction}", nix::unistd::getpid()))?)
}

/// One topic in each direction.
pub(crate) struct PublishSubscribe {
    requests: Publisher<ipc::Service, u64, ()>,
    replies: Subscriber<ipc::Service, u64, ()>,
    _node: Node<ipc::Service>,
    poller: Poller,
}

impl PublishSubscribe {
    pub(crate) fn start() -> Result<Self> {
        let (there, back) = (name("requests")?, name("replies")?);
        let open = |node: &Node<ipc::Service>, name: &ServiceName| {
            node.service_builder(name).publish_subscribe::<u64>().open_or_create()
        };
        let poller = Poller::start(|mut sleeper, ready| {
            let node = NodeBuilder::new().create::<ipc::Service>()?;
            let requests = open(&node, &there)?.subscriber_builder().create()?;
            let replies = open(&node, &back)?.publisher_builder().create()?;
            ready();
            while woken(&mut sleeper) {
                loop {
                    let n = spin_until(|| requests.receive().expect("a subscriber"));
                    let pause = *n == PAUSE;
                    replies.loan_uninit()?.write_payload(if pause { PAUSE } else { *n + 1 }).send()?;
                    if pause {
                        break;
                    }
                }
            }
            Ok(())
        })?;
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let replies = open(&node, &back)?.subscriber_builder().create()?;
        let requests = open(&node, &there)?.publisher_builder().create()?;
        Ok(Self { requests, replies, _node: node, poller })
    }

    /// Wakes the child and lets `f` exchange values with it.
    pub(crate) fn awake<T>(&mut self, f: impl FnOnce(&mut dyn FnMut(u64) -> u64) -> T) -> T {
        self.poller.wake();
        assert_eq!(self.exchange(HELLO), HELLO + 1);
        let result = f(&mut |n| self.exchange(n));
        assert_eq!(self.exchange(PAUSE), PAUSE);
        result
    }

    fn exchange(&self, n: u64) -> u64 {
        self.requests.loan_uninit().expect("a free sample").write_payload(n).send().expect("a subscriber");
        *spin_until(|| self.replies.receive().expect("a publisher"))
    }
}

/// One service.
pub(crate) struct RequestResponse {
    client: Client<ipc::Service, u64, (), u64, ()>,
    _node: Node<ipc::Service>,
    poller: Poller,
}

impl RequestResponse {
    pub(crate) fn start() -> Result<Self> {
        let name = name("increment")?;
        let open = |node: &Node<ipc::Service>| {
            node.service_builder(&name).request_response::<u64, u64>().open_or_create()
        };
        let poller = Poller::start(|mut sleeper, ready| {
            let node = NodeBuilder::new().create::<ipc::Service>()?;
            let server = open(&node)?.server_builder().create()?;
            ready();
            while woken(&mut sleeper) {
                loop {
                    let request = spin_until(|| server.receive().expect("a server"));
                    let pause = *request == PAUSE;
                    request.loan_uninit()?.write_payload(if pause { PAUSE } else { *request + 1 }).send()?;
                    if pause {
                        break;
                    }
                }
            }
            Ok(())
        })?;
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let client = open(&node)?.client_builder().create()?;
        Ok(Self { client, _node: node, poller })
    }

    /// Wakes the child and lets `f` exchange values with it.
    pub(crate) fn awake<T>(&mut self, f: impl FnOnce(&mut dyn FnMut(u64) -> u64) -> T) -> T {
        self.poller.wake();
        assert_eq!(self.exchange(HELLO), HELLO + 1);
        let result = f(&mut |n| self.exchange(n));
        assert_eq!(self.exchange(PAUSE), PAUSE);
        result
    }

    fn exchange(&self, n: u64) -> u64 {
        let request = self.client.loan_uninit().expect("a free request").write_payload(n);
        let pending = request.send().expect("a server");
        *spin_until(|| pending.receive().expect("a server"))
    }
}
