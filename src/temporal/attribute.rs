//! The search attribute by which the workflows of an account are listed.
//!
//! Its value is half of SHA-256 over the account, in hex: of one length whatever the name, so that no store cuts it off
//! (a Keyword is a column of 255 characters on some), compared alike whatever the store's collation, and in need of no quoting
//! in a query. The name itself is in the memo.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use temporalio_client::tonic::{Code, Status};
use temporalio_common::protos::temporal::api::common::v1::{Payload, SearchAttributes};
use temporalio_common::protos::temporal::api::enums::v1::IndexedValueType;
use temporalio_common::protos::temporal::api::operatorservice::v1::AddSearchAttributesRequest;
use temporalio_common::protos::temporal::api::workflowservice::v1::CountWorkflowExecutionsRequest;

use super::client::TemporalClient;
use super::deliver::DeliverError;

/// The attribute's name, unless configured otherwise.
pub const ACCOUNT_ATTRIBUTE: &str = "CrossoverAccount";

/// A namespace that lacks the attribute is tried again after so long; meanwhile starts go without it at once.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// The attribute, and whether the namespace is known to lack it.
#[derive(Debug)]
pub struct AccountAttribute {
    name: String,
    refused_at: Mutex<Option<Instant>>,
}

/// How the namespace stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It has the attribute.
    There,
    /// It has it now.
    Created,
}

impl AccountAttribute {
    /// An attribute of this name.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), refused_at: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it says of `account`.
    pub fn value(account: &str) -> String {
        Sha256::digest(account).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// What a start of `account` carries; nothing where the namespace lacks it.
    pub(super) fn of(&self, account: &str) -> Option<SearchAttributes> {
        if self.refused().is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return None;
        }
        let metadata =
            [("encoding".to_owned(), b"json/plain".to_vec()), ("type".to_owned(), b"Keyword".to_vec())].into();
        let data = format!("\"{}\"", Self::value(account)).into_bytes();
        let field = Payload { metadata, data, ..Default::default() };
        Some(SearchAttributes { indexed_fields: [(self.name.clone(), field)].into() })
    }

    /// Whether a start was refused because of the attribute. The next ones go without it.
    pub(super) fn is_missing(&self, status: &Status) -> bool {
        let missing = refuses(status);
        if missing {
            *self.refused() = Some(Instant::now());
        }
        missing
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.refused_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// «Namespace default has no mapping defined for search attribute X» of a start, «invalid search attribute: X» of a query.
fn refuses(status: &Status) -> bool {
    status.code() == Code::InvalidArgument && status.message().to_lowercase().contains("search attribute")
}

impl TemporalClient {
    /// Looks whether the namespace has the attribute, and adds it where it has not. A query tells, which takes no more than
    /// the right to list.
    pub async fn ensure_attribute(&self) -> Result<Found, DeliverError> {
        if self.has_attribute().await? {
            return Ok(Found::There);
        }
        self.bounded(self.add_attribute()).await?;
        *self.attribute.refused() = None;
        Ok(Found::Created)
    }

    /// Whether the namespace has the attribute.
    pub async fn has_attribute(&self) -> Result<bool, DeliverError> {
        let name = self.attribute.name();
        let request = CountWorkflowExecutionsRequest {
            namespace: self.target.namespace.clone(),
            query: format!("{name} = 'none'"),
        };
        self.bounded(async {
            match self.service().await?.count_workflow_executions(self.request(request)).await {
                Ok(_) => Ok(true),
                Err(status) if refuses(&status) => Ok(false),
                Err(status) => Err(status.into()),
            }
        })
        .await
    }

    async fn add_attribute(&self) -> Result<(), DeliverError> {
        let name = self.attribute.name().to_owned();
        let todo = format!(
            "add it: temporal operator search-attribute create --namespace {} --name {name} --type Keyword",
            self.target.namespace
        );
        let request = AddSearchAttributesRequest {
            namespace: self.target.namespace.clone(),
            search_attributes: [(name.clone(), IndexedValueType::Keyword.into())].into(),
        };
        let added = self.operator().await?.add_search_attributes(self.request(request)).await;
        added.map(drop).map_err(|status| DeliverError::Refused {
            retryable: true,
            reason: format!(
                "namespace `{}` has no search attribute {name}, and it can't be added ({:?}: {}); {todo}",
                self.target.namespace,
                status.code(),
                status.message()
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_one_length_and_nothing_to_quote() {
        for account in ["a", "it's", "\\", &"ü".repeat(200)] {
            let value = AccountAttribute::value(account);
            assert!(value.len() == 32 && value.chars().all(|c| c.is_ascii_hexdigit()), "{value}");
        }
        assert_ne!(AccountAttribute::value("Acme"), AccountAttribute::value("acme"));
    }

    #[test]
    fn a_refused_attribute_is_left_out_of_the_starts_that_follow() {
        let attribute = AccountAttribute::named("X");
        assert!(attribute.of("a").is_some());
        assert!(!attribute.is_missing(&Status::invalid_argument("Blob data size exceeds limit.")));
        assert!(attribute.of("a").is_some());
        assert!(
            attribute.is_missing(&Status::invalid_argument(
                "Namespace default has no mapping defined for search attribute X"
            ))
        );
        assert!(attribute.of("a").is_none());
    }
}
