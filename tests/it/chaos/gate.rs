//! What stands between one process and one server, and lets through what it is told to.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    requests: bool,
    answers: bool,
    connects: bool,
    /// Connections of an earlier one are over.
    generation: u64,
}

pub struct Gate {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

impl Gate {
    pub async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = State { requests: true, answers: true, connects: true, generation: 0 };
        let state = Arc::new(watch::Sender::new(open));
        tokio::spawn(listen(listener, server, state.clone()));
        Self { address, state }
    }

    /// Everything passes again.
    pub fn open(&self) {
        self.state.send_modify(|s| (s.requests, s.answers, s.connects) = (true, true, true));
    }

    pub fn freeze(&self) {
        self.state.send_modify(|s| (s.requests, s.answers) = (false, false));
    }

    pub fn deafen(&self) {
        self.state.send_modify(|s| s.answers = false);
    }

    /// Closes every connection; what was on its way is lost.
    pub fn cut(&self) {
        self.state.send_modify(|s| s.generation += 1);
    }

    pub fn refuse(&self) {
        self.state.send_modify(|s| (s.connects, s.generation) = (false, s.generation + 1));
    }
}

async fn listen(listener: TcpListener, server: String, state: Arc<watch::Sender<State>>) {
    while let Ok((near, _)) = listener.accept().await {
        if !state.borrow().connects {
            continue;
        }
        let (server, state) = (server.clone(), state.subscribe());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(&server).await else { return };
            let (mut cut, born) = (state.clone(), state.borrow().generation);
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            // An end of either half ends both: none of the protocols here goes on one-handed.
            tokio::select! {
                () = pass(near_in, far_out, state.clone(), |s| s.requests) => {}
                () = pass(far_in, near_out, state, |s| s.answers) => {}
                _ = cut.wait_for(|s| s.generation != born) => {}
            }
        });
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    open: fn(&State) -> bool,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if state.wait_for(open).await.is_err() || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
    // The end of a connection passes no sooner than what came before it.
    let _ = state.wait_for(open).await;
}
