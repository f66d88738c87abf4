//! What stands between a process and a server when the network is at fault.

use crossover::proof::Weather;
use tokio::net::TcpListener;

/// Passes everything on to the server, and its answers back unless they are withheld.
pub struct Proxy {
    pub address: String,
    proxy: crossover::proof::Proxy,
}

impl Proxy {
    pub async fn to(server: &str) -> Self {
        let proxy = crossover::proof::Proxy::to(server).await.unwrap();
        Self { address: proxy.address().to_owned(), proxy }
    }

    /// From now on the server hears everything and nobody hears the server.
    pub fn withhold_answers(&self) {
        self.proxy.set(Weather::Deaf);
    }

    /// What was withheld goes on its way, and so does what comes.
    pub fn answer(&self) {
        self.proxy.set(Weather::Fine);
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
