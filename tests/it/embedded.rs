//! The program with the queue inside, as `examples/embedded.rs` has it.

use crossover::app::Servers;
use crossover::config::Config;
use crossover::interaction::Outcome;
use crossover::ledger::{self, Ledger};

use crate::servers;

#[path = "../../examples/embedded.rs"]
mod example;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_the_queue_inside_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::defaults();
    config.state_dir = folder.path().to_owned();
    config.http.listen = "127.0.0.1:0".parse().unwrap();
    config.temporal.task_queue = "embedded".to_owned();
    let postgres_url = servers::database().await;
    let pool = ledger::pool(&postgres_url, 2, std::time::Duration::from_secs(10)).unwrap();
    Ledger::new(pool).migrate().await.unwrap();
    let servers = Servers {
        postgres_url,
        #[cfg(feature = "temporal")]
        temporal_address: servers::temporal().await.address.clone(),
        #[cfg(not(feature = "temporal"))]
        temporal_address: String::new(),
        postgres: None,
        #[cfg(feature = "temporal")]
        temporal: None,
    };
    let ended = example::run(config, servers).await.unwrap();
    assert_eq!(ended.len(), 20);
    assert!(ended.iter().all(|ended| ended.outcome == Outcome::Succeeded), "{ended:#?}");
    assert!(ended.iter().any(|ended| ended.result.as_ref().unwrap().get().contains("3@example.org")), "{ended:#?}");
}
