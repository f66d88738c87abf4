//! What stands between the bridge and Temporal, and can be shut in two ways.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Everything passes.
    Open,
    /// Connections are taken and kept, and nothing passes: the server hangs.
    Silent,
    /// Connections are broken: the server is down.
    Down,
}

/// A valve before a server.
pub struct Valve {
    pub address: String,
    flow: watch::Sender<Flow>,
}

impl Valve {
    pub async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (flow, server) = (watch::channel(Flow::Open).0, server.to_owned());
        let flowing = flow.subscribe();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(connect(near, server.clone(), flowing.clone()));
            }
        });
        Self { address, flow }
    }

    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

async fn connect(near: TcpStream, server: String, mut flow: watch::Receiver<Flow>) {
    let Ok(Flow::Open) = flow.wait_for(|flow| *flow != Flow::Silent).await.map(|flow| *flow) else { return };
    let Ok(far) = TcpStream::connect(&server).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // Where one way ends the other does, and both connections with it.
    tokio::select! {
        () = pass(near_in, far_out, flow.clone()) => {}
        () = pass(far_in, near_out, flow.clone()) => {}
        _ = flow.wait_for(|flow| *flow == Flow::Down) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if flow.wait_for(|flow| *flow == Flow::Open).await.is_err() || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
