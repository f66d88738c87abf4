//! How the end of an attempt that did not succeed is worded for Temporal: its retry machine and the workflow read it.

use std::time::Duration;

use temporalio_sdk::ApplicationFailure;

use crate::executor::{PARKED, clean};
use crate::interaction::Attempt;
use crate::policy::OnUnknown;

use super::wire::Exact;

/// No other attempt follows.
pub(super) fn give_up(report: Attempt) -> ApplicationFailure {
    let failure = ApplicationFailure::builder(said(&report)).type_name("give-up".to_owned());
    failure.non_retryable(true).details(Exact(report)).build()
}

/// None follows before a person has said what came of it. The workflow tells the ledger of it, attempt and all.
pub(super) fn park(report: Attempt) -> (Attempt, ApplicationFailure) {
    let error = clean(&format!("{PARKED}{}", said(&report)));
    let report = Attempt { error: Some(error.clone()), ..report };
    let failure = ApplicationFailure::builder(error).type_name("park".to_owned());
    let failure = failure.non_retryable(true).details(Exact(report.clone())).build();
    (report, failure)
}

/// Another follows after `delay`.
pub(super) fn retry(report: Attempt, delay: Duration, on_unknown: OnUnknown) -> (Attempt, ApplicationFailure) {
    let report = Attempt { retry_ms: Some(delay.as_millis() as i64), ..report };
    // A delay of nothing would read as "none given".
    let delay = delay.max(Duration::from_millis(1));
    let failure = ApplicationFailure::builder(said(&report)).type_name("retry".to_owned()).next_retry_delay(delay);
    let failure = match on_unknown {
        OnUnknown::Retry => failure.build(),
        // The workflow reads when to try again.
        OnUnknown::Park => failure.details(Exact(report.clone())).build(),
    };
    (report, failure)
}

fn said(report: &Attempt) -> String {
    report.error.clone().unwrap_or_default()
}
