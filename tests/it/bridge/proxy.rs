//! What stands between a process and a server when the network is at fault.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes everything on to the server, and its answers back unless they are withheld.
pub struct Proxy {
    pub address: String,
    answers: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (answers, server) = (Arc::new(watch::channel(true).0), server.to_owned());
        let passing = answers.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&server).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near_in, far_out, watch::channel(true).1));
                tokio::spawn(pass(far_in, near_out, passing.subscribe()));
            }
        });
        Self { address, answers }
    }

    /// From now on the server hears everything and nobody hears the server.
    pub fn withhold_answers(&self) {
        self.answers.send_replace(false);
    }

    /// What was withheld goes on its way, and so does what comes.
    pub fn answer(&self) {
        self.answers.send_replace(true);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

/// Accepts every connection and never says a word.
pub async fn black_hole() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    address
}
