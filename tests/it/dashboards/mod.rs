//! Facts about dashboards and alert rules, judged by a real Prometheus that has scraped a real run.

mod prometheus;

use prometheus::Prom;

#[tokio::test]
async fn prometheus_needs_nothing_installed_and_answers() {
    let prom = Prom::start(&[], None).await;
    assert_eq!(prom.query("vector(7)").await, vec![7.0]);
}
