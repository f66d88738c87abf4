//! What stands between a process and a server when the network is to be at fault.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of what comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// It passes.
    Fine,
    /// Connections are taken and nothing is ever said.
    Hanging,
    /// The server hears everything, and its answers are held back until the weather changes.
    Deaf,
    /// Each answer takes so long.
    Slow(Duration),
    /// Nobody is there: connections are refused, and those that were open are cut.
    Dead,
}

/// Passes connections on to a server, as the weather allows.
pub struct Proxy {
    address: String,
    weather: Arc<watch::Sender<Weather>>,
}

impl Proxy {
    /// A proxy to `server`, `host:port`. It ends with the runtime.
    pub async fn to(server: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let weather = Arc::new(watch::channel(Weather::Fine).0);
        tokio::spawn(accept(listener, server.to_owned(), weather.clone()));
        Ok(Self { address, weather })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on, for connections that are open as well.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(listener: TcpListener, server: String, weather: Arc<watch::Sender<Weather>>) {
    let Ok(address) = listener.local_addr() else { return };
    let (mut listener, mut changes) = (Some(listener), weather.subscribe());
    loop {
        let dead = *changes.borrow_and_update() == Weather::Dead;
        listener = match listener.filter(|_| !dead) {
            None if !dead => TcpListener::bind(address).await.ok(),
            listening => listening,
        };
        let taken = async {
            match &listener {
                Some(listener) => listener.accept().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = taken => if let Some((near, _)) = taken {
                tokio::spawn(serve(near, server.clone(), weather.subscribe()));
            },
            changed = changes.changed() => if changed.is_err() { return },
            // The port may take a moment to be free again.
            () = tokio::time::sleep(Duration::from_millis(50)), if listener.is_none() && !dead => {}
        }
    }
}

async fn serve(near: TcpStream, server: String, mut weather: watch::Receiver<Weather>) {
    let Ok(far) = TcpStream::connect(&server).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let (there, back) = (weather.clone(), weather.clone());
    // Whichever comes first, both ends go, and with them the connection.
    tokio::select! {
        () = pass(near_in, far_out, there, false) => {}
        () = pass(far_in, near_out, back, true) => {}
        _ = weather.wait_for(|weather| *weather == Weather::Dead) => {}
    }
}

/// Passes bytes on. Whoever hangs says nothing either way, whoever is deaf hears no answer; whoever is slow answers late.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>, answers: bool) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let passes = |weather: &Weather| match weather {
            Weather::Hanging => false,
            Weather::Deaf => !answers,
            _ => true,
        };
        let now = weather.wait_for(passes).await.map(|weather| *weather);
        match now {
            Ok(Weather::Slow(by)) if answers => tokio::time::sleep(by).await,
            Ok(_) => {}
            Err(_) => return,
        }
        if to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
