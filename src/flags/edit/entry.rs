//! A strategy that does nothing but list accounts, perhaps for some kinds only: the kind that commands write and change.
//! Every other strategy belongs to who wrote it.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::kinds::Kinds;

/// Where in its strategy the list of accounts stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// `parameters.userIds`, one text with commas.
    UserIds,
    /// `values` of a constraint, by its number.
    Constraint(usize),
}

/// What such a strategy says.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) list: List,
    pub(super) accounts: Vec<String>,
    pub(super) kinds: Kinds,
}

/// Reads a strategy; none where it decides by anything else.
pub(super) fn read(strategy: &Value) -> Option<Entry> {
    let empty = |name: &str| strategy[name].as_array().is_none_or(Vec::is_empty);
    if !empty("segments") {
        return None;
    }
    let parameters = &strategy["parameters"];
    let mut list = match strategy["name"].as_str()? {
        "default" => None,
        "flexibleRollout" if parameters["rollout"].as_str() == Some("100") => None,
        "userWithId" => Some((List::UserIds, user_ids(parameters["userIds"].as_str()?))),
        _ => return None,
    };
    let mut kinds = None;
    for (n, constraint) in strategy["constraints"].as_array()?.iter().enumerate() {
        let flag = |name: &str| constraint[name].as_bool().unwrap_or(false);
        if flag("inverted") || flag("caseInsensitive") {
            return None;
        }
        let values = constraint["values"].as_array()?.iter().map(|v| v.as_str().map(str::to_owned));
        match (constraint["contextName"].as_str()?, constraint["operator"].as_str()?) {
            ("userId", "IN") if list.is_none() => {
                list = Some((List::Constraint(n), values.collect::<Option<Vec<_>>>()?));
            }
            ("kind", "IN") if kinds.is_none() => kinds = Some(Kinds::Only(values.collect::<Option<_>>()?)),
            ("kind", "NOT_IN") if kinds.is_none() => kinds = Some(Kinds::AllBut(values.collect::<Option<_>>()?)),
            _ => return None,
        }
    }
    let (list, accounts) = list?;
    Some(Entry { list, accounts, kinds: kinds.unwrap_or_else(Kinds::all) })
}

impl Entry {
    pub(super) fn lists(&self, account: &str) -> bool {
        self.accounts.iter().any(|listed| listed == account)
    }

    /// Whether the account can be written into its list, which has room for so many.
    pub(super) fn can_take(&self, account: &str, room: usize) -> bool {
        let fits = matches!(self.list, List::Constraint(_)) || (!account.contains(',') && account.trim() == account);
        fits && self.accounts.len() < room
    }

    pub(super) fn with(&self, account: &str) -> Vec<String> {
        self.accounts.iter().cloned().chain([account.to_owned()]).collect()
    }

    pub(super) fn without(&self, account: &str) -> Vec<String> {
        self.accounts.iter().filter(|listed| *listed != account).cloned().collect()
    }
}

fn user_ids(text: &str) -> Vec<String> {
    text.split(',').map(|account| account.trim().to_owned()).filter(|account| !account.is_empty()).collect()
}

/// A strategy as commands write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewStrategy {
    name: &'static str,
    /// One on `userId`, and one on `kind` where not all are meant.
    pub constraints: Vec<NewConstraint>,
}

/// Its constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewConstraint {
    /// `userId` or `kind`.
    pub context_name: &'static str,
    /// `IN` or `NOT_IN`.
    pub operator: &'static str,
    /// The names.
    pub values: Vec<String>,
}

pub(super) fn write(account: &str, kinds: &Kinds) -> NewStrategy {
    let names = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>();
    let by_kind = match kinds {
        Kinds::AllBut(but) if but.is_empty() => None,
        Kinds::AllBut(but) => Some(("NOT_IN", names(but))),
        Kinds::Only(only) => Some(("IN", names(only))),
    };
    let account = NewConstraint { context_name: "userId", operator: "IN", values: vec![account.to_owned()] };
    let kind = by_kind.map(|(operator, values)| NewConstraint { context_name: "kind", operator, values });
    NewStrategy { name: "default", constraints: std::iter::once(account).chain(kind).collect() }
}
