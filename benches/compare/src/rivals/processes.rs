//! Other processes: ipc-channel and procspawn.

use std::io;

use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcReceiver, IpcSender, bytes_channel, channel};

use crate::raw::{Child, number};

/// A child that answers over a pair of ipc-channels.
pub(crate) struct IpcChannel {
    requests: IpcSender<u64>,
    replies: IpcReceiver<u64>,
    _child: Child,
}

impl IpcChannel {
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, receiver) = channel::<u64>()?;
        let (sender, replies) = channel::<u64>()?;
        let child = Child::fork(|| {
            while let Ok(n) = receiver.recv() {
                if sender.send(n + 1).is_err() {
                    break;
                }
            }
        });
        Ok(Self { requests, replies, _child: child })
    }

    pub(crate) fn exchange(&self, n: u64) -> u64 {
        self.requests.send(n).expect("a child that listens");
        self.replies.recv().expect("a reply")
    }
}

/// A child that sends back bytes over a pair of ipc-channels, with the number that they start with increased.
pub(crate) struct IpcBytes {
    requests: IpcBytesSender,
    replies: IpcBytesReceiver,
    _child: Child,
}

impl IpcBytes {
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, receiver) = bytes_channel()?;
        let (sender, replies) = bytes_channel()?;
        let child = Child::fork(|| {
            while let Ok(mut message) = receiver.recv() {
                let n = number(&message) + 1;
                message[..8].copy_from_slice(&n.to_le_bytes());
                if sender.send(&message).is_err() {
                    break;
                }
            }
        });
        Ok(Self { requests, replies, _child: child })
    }

    pub(crate) fn exchange(&self, message: &[u8]) -> Vec<u8> {
        self.requests.send(message).expect("a child that listens");
        self.replies.recv().expect("a reply")
    }
}

/// A pool of one process of procspawn's.
pub(crate) struct Procspawn(procspawn::Pool);

impl Procspawn {
    pub(crate) fn start() -> Result<Self, procspawn::SpawnError> {
        procspawn::Pool::builder(1).disable_stdin().disable_stdout().build().map(Self)
    }

    pub(crate) fn exchange(&self, n: u64) -> u64 {
        self.0.spawn(n, |n| n + 1).join().expect("a reply")
    }
}

impl Drop for Procspawn {
    fn drop(&mut self) {
        self.0.kill();
    }
}
