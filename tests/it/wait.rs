//! Tests wait for signals; where a condition is another process's or a database's and nothing rings, they look again and again.

use std::time::Duration;

/// Nothing here takes so long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What `look` found, once it finds something.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited too long until {what}"))
}
