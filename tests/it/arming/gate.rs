//! A door between a process and a server that can be shut: what is open is cut, what comes is refused.

use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Gate {
    pub address: String,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, server) = (Arc::new(watch::channel(true).0), server.to_owned());
        let door = open.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut door, server) = (door.subscribe(), server.clone());
                tokio::spawn(async move {
                    if !*door.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(&server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = door.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open }
    }

    /// To the Postgres of this URL; the URL that leads through the gate.
    pub async fn to_postgres(url: &str) -> (Self, String) {
        let options: PgConnectOptions = url.parse().unwrap();
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let gate = Self::to(&server).await;
        assert!(url.contains(&server), "{url} does not say {server}");
        let through = url.replace(&server, &gate.address);
        (gate, through)
    }

    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}
