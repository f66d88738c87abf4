//! Asks a Temporal whether it can hold what crossover needs.

use std::time::Duration;

use temporalio_client::tonic::IntoRequest;
use temporalio_client::{Connection, ConnectionOptions, RetryOptions};
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeNamespaceRequest;
use tokio::time::timeout;

use crate::config::Config;

/// Connecting, and one call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects, and compares how long the namespace keeps closed workflows with how long keys must be remembered:
/// an id that is forgotten too early could be started twice.
pub(super) async fn retention(address: &str, config: &Config) -> Result<String, String> {
    let asked = timeout(PATIENCE, ask(address, &config.temporal.namespace)).await;
    let kept = asked.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
    let (shown, window) = (humantime::format_duration(kept), config.window.idempotency);
    if kept < window {
        let window = humantime::format_duration(window);
        return Err(format!("closed workflows are kept for {shown}, shorter than window.idempotency ({window}); raise the namespace's retention"));
    }
    if kept > config.retention.ended {
        let ended = humantime::format_duration(config.retention.ended);
        return Err(format!("closed workflows are kept for {shown}, longer than pins (retention.ended, {ended}): a key that is used again in between would meet its old workflow; raise retention.ended, or lower the namespace's retention"));
    }
    let listed = attribute(address, config).await?;
    Ok(format!("closed workflows are kept for {shown}; {listed}"))
}

/// Without the search attribute everything runs, but before an account is armed all open workflows must be looked through.
async fn attribute(address: &str, config: &Config) -> Result<String, String> {
    let client = crate::app::temporal_client(config, address).map_err(|error| error.to_string())?;
    let (name, namespace) = (client.attribute(), &config.temporal.namespace);
    match client.has_attribute().await.map_err(|error| error.to_string())? {
        true => Ok(format!("it has the search attribute {name}")),
        false => Err(format!(
            "namespace `{namespace}` has no search attribute {name}; `crossover serve` adds it, where it may; otherwise: temporal operator search-attribute create --namespace {namespace} --name {name} --type Keyword"
        )),
    }
}

async fn ask(address: &str, namespace: &str) -> Result<Duration, String> {
    let target = reqwest::Url::parse(&format!("http://{address}")).map_err(|error| error.to_string())?;
    let options = ConnectionOptions::new(target).identity("crossover-doctor").connect_timeout(PATIENCE);
    let options = options.retry_options(RetryOptions::no_retries()).dns_load_balancing(None).build();
    let connection = Connection::connect(options).await.map_err(|error| cause(&error))?;
    let request = DescribeNamespaceRequest { namespace: namespace.to_owned(), ..Default::default() };
    let answer = connection.workflow_service().describe_namespace(request.into_request()).await;
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    let kept = answer.config.and_then(|config| config.workflow_execution_retention_ttl);
    let kept = kept.ok_or("it doesn't say how long closed workflows are kept")?;
    Ok(Duration::new(kept.seconds.unsigned_abs(), kept.nanos.unsigned_abs()))
}

/// The innermost error: those around it only say that something failed.
fn cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map_or_else(String::new, ToString::to_string)
}
