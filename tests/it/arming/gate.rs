//! A door between a process and Postgres that can be shut: what is open is cut, what comes is refused.

use crossover::proof::{Proxy, Weather};
use sqlx::postgres::PgConnectOptions;

pub struct Gate(Proxy);

impl Gate {
    /// To the Postgres of this URL; the URL that leads through the gate.
    pub async fn to_postgres(url: &str) -> (Self, String) {
        let options: PgConnectOptions = url.parse().unwrap();
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let proxy = Proxy::to(&server).await.unwrap();
        assert!(url.contains(&server), "{url} does not say {server}");
        let through = url.replace(&server, proxy.address());
        (Self(proxy), through)
    }

    pub fn shut(&self) {
        self.0.set(Weather::Dead);
    }

    pub fn open(&self) {
        self.0.set(Weather::Fine);
    }
}
