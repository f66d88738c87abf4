//! What an interaction waits for: `after`, a list of ids or an object.

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Fault, Reader, name_fault, plain};
use crate::interaction::{After, interaction_id};
use crate::queue::tasks;

/// An interaction waits for at most so many.
pub(crate) const MOST: usize = 1_000;

const FIELDS: [&str; 4] = ["ids", "keys", "when", "on_failure"];

/// Reads `after` of an interaction of `account`. What is wrong with it is pushed to `faults`; none: it waits for nothing.
pub(crate) fn read(raw: &RawValue, account: &str, faults: &mut Vec<Fault>) -> Option<After> {
    let text = raw.get();
    if text == "null" {
        return None;
    }
    let mut push = |message: String| faults.push(Fault { field: "after".to_owned(), message });
    let after = if text.starts_with('[') {
        match serde_json::from_str::<Vec<Uuid>>(text) {
            Ok(ids) => After { ids, when: Default::default(), on_failure: Default::default() },
            Err(error) => {
                push(format!("is no list of ids: {}", plain(&error)));
                return None;
            }
        }
    } else {
        let fields = match serde_json::from_str(text) {
            Ok(fields) => fields,
            Err(error) => {
                push(format!(
                    "must be a list of ids, or an object with `ids`, `keys`, `when`, `on_failure`: {}",
                    plain(&error)
                ));
                return None;
            }
        };
        let mut reader = Reader { prefix: "after.", fields, faults: Vec::new() };
        reader.known(&FIELDS);
        let mut ids: Vec<Uuid> = reader.take("ids").unwrap_or_default();
        let keys: Vec<String> = reader.take("keys").unwrap_or_default();
        if let Some((key, message)) = keys.iter().find_map(|key| Some((key, name_fault(key, 400)?))) {
            reader.fault("keys", format!("`{}` {message}", crate::executor::clean(key)));
        }
        if ids.len() + keys.len() > MOST {
            reader.fault("keys", too_many(ids.len() + keys.len()));
        } else {
            ids.extend(keys.iter().map(|key| id_of_key(account, key)));
        }
        let (when, on_failure) = (reader.take("when"), reader.take("on_failure"));
        faults.append(&mut reader.faults);
        After { ids, when: when.unwrap_or_default(), on_failure: on_failure.unwrap_or_default() }
    };
    (!after.ids.is_empty()).then_some(after)
}

/// The interaction that a key of an account leads to.
pub(crate) fn id_of_key(account: &str, key: &str) -> Uuid {
    tasks::of_key(key).unwrap_or_else(|| interaction_id(account, key))
}

/// What is wrong with what the interaction `id` waits for.
pub(super) fn fault(after: &After, id: Uuid) -> Option<String> {
    (after.ids.len() > MOST)
        .then(|| too_many(after.ids.len()))
        .or_else(|| after.ids.contains(&id).then(|| "names the interaction itself: it would wait for ever".to_owned()))
}

fn too_many(named: usize) -> String {
    format!("names {named} interactions, the limit is {MOST}; wait for a few that wait for the others")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::{OnFailure, When};

    fn read_text(text: &str) -> Result<Option<After>, Vec<String>> {
        let mut faults = Vec::new();
        let after = read(&RawValue::from_string(text.to_owned()).unwrap(), "a", &mut faults);
        if faults.is_empty() { Ok(after) } else { Err(faults.into_iter().map(|fault| fault.field).collect()) }
    }

    #[test]
    fn a_list_waits_for_all_and_skips_and_an_object_says_what_it_wants() {
        let id = Uuid::from_u128(7);
        let of = |ids: &[Uuid], when, on_failure| Ok(Some(After { ids: ids.to_vec(), when, on_failure }));
        assert_eq!(read_text(&format!("[\"{id}\"]")), of(&[id], When::All, OnFailure::Skip));
        let text = format!(r#"{{"ids":["{id}"],"keys":["k"],"when":"any","on_failure":"run"}}"#);
        assert_eq!(read_text(&text), of(&[id, interaction_id("a", "k")], When::Any, OnFailure::Run));
    }

    #[test]
    fn waiting_for_nothing_is_no_wait() {
        for text in ["null", "[]", "{}", r#"{"ids":[],"when":"any"}"#] {
            assert_eq!(read_text(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn every_fault_is_named_at_once() {
        assert_eq!(read_text("7"), Err(vec!["after".to_owned()]));
        assert_eq!(read_text(r#"["x"]"#), Err(vec!["after".to_owned()]));
        let bad = r#"{"ids":7,"keys":["a",""],"when":"some","on_failure":"panic","idz":[]}"#;
        let mut fields = read_text(bad).unwrap_err();
        fields.sort();
        assert_eq!(fields, ["after.ids", "after.idz", "after.keys", "after.on_failure", "after.when"]);
    }

    #[test]
    fn a_key_of_a_task_leads_to_the_task() {
        let id = tasks::new_id(chrono::Utc::now());
        assert_eq!(id_of_key("a", &tasks::key_of(id)), id);
    }

    #[test]
    fn too_many_and_itself_are_refused() {
        let after = |ids: Vec<Uuid>| After { ids, when: When::All, on_failure: OnFailure::Skip };
        let id = Uuid::from_u128(1);
        assert!(fault(&after(vec![Uuid::from_u128(2); MOST]), id).is_none());
        assert!(fault(&after(vec![Uuid::from_u128(2); MOST + 1]), id).is_some());
        assert!(fault(&after(vec![Uuid::from_u128(2), id]), id).is_some());
    }
}
