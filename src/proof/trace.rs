//! Reads an arrival trace: one JSON object a line, gzipped or plain. Read whole before anything is enqueued, so that a
//! broken one does nothing.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use super::driver::Job;
use crate::interaction::{Interaction, Payload};
use crate::policy::Policy;
use crate::router::request;

const GZIP: [u8; 2] = [0x1f, 0x8b];
/// A trace with more text than this is no trace.
const MOST: u64 = 4 << 30;

/// Why a trace can't be used. Nothing of it was enqueued.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no such file, or it may not be read.
    #[error("{path} can't be read ({error}); nothing was enqueued. Name a trace that is there")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// Its name says gzip, its bytes don't.
    #[error(
        "{path} is named like gzip but does not begin like it; nothing was enqueued. Fetch it again, or rename it if it is plain text"
    )]
    NotGzip {
        /// The file.
        path: PathBuf,
    },
    /// The compressed stream ends or breaks in the middle.
    #[error(
        "{path} is cut or damaged: its gzip stream breaks in line {line}, after {bytes} bytes of text ({error}); nothing was enqueued. Fetch it again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line that is not whole.
        line: usize,
        /// How much text there was before.
        bytes: usize,
        /// What the decoder says.
        #[source]
        error: std::io::Error,
    },
    /// One line is no interaction.
    #[error(
        "{path}, line {line}: {problem}; nothing was enqueued. Mend the line, or fetch the file again if it is cut"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// No line at all.
    #[error("{path} holds no interaction; nothing was enqueued. A trace has one JSON object a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at_ms: u64,
    account: String,
    kind: String,
    #[serde(default)]
    series: Option<String>,
    key: String,
    payload: Payload,
}

/// Reads at most `limit` interactions of a trace, the first ones, and spreads them over `over`. The whole file is checked.
pub fn read(path: &Path, over: Duration, limit: usize) -> Result<Vec<Job>, TraceError> {
    let text = text_of(path)?;
    let mut lines = parse(path, &text)?;
    lines.sort_by_key(|line| line.at_ms);
    lines.truncate(limit);
    let (first, last) = match (lines.first(), lines.last()) {
        (Some(first), Some(last)) => (first.at_ms, last.at_ms),
        _ => return Err(TraceError::Empty { path: path.to_owned() }),
    };
    let scale = over.as_secs_f64() / ((last - first).max(1) as f64);
    let mut names = HashSet::new();
    Ok(lines.into_iter().map(|line| job(line, first, scale, &mut names)).collect())
}

fn job(line: Line, first: u64, scale: f64, names: &mut HashSet<Arc<str>>) -> Job {
    let mut name = |text: String| match names.get(text.as_str()) {
        Some(known) => known.clone(),
        None => {
            let name: Arc<str> = text.into();
            names.insert(name.clone());
            name
        }
    };
    let at = Duration::from_secs_f64((line.at_ms - first) as f64 * scale);
    let Line { account, kind, series, key, payload, .. } = line;
    Job { at, account: name(account), kind: name(kind), series: series.map(name), key, payload }
}

fn text_of(path: &Path) -> Result<Vec<u8>, TraceError> {
    let bytes = std::fs::read(path).map_err(|error| TraceError::Open { path: path.to_owned(), error })?;
    if !bytes.starts_with(&GZIP) {
        let named_gzip = path.extension().is_some_and(|extension| extension == "gz");
        return if named_gzip { Err(TraceError::NotGzip { path: path.to_owned() }) } else { Ok(bytes) };
    }
    let mut text = Vec::new();
    let read = MultiGzDecoder::new(bytes.as_slice()).take(MOST).read_to_end(&mut text);
    let line = || text.iter().filter(|byte| **byte == b'\n').count() + 1;
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(TraceError::Damaged { path: path.to_owned(), line: line(), bytes: text.len(), error }),
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Vec<Line>, TraceError> {
    let mut keys = HashMap::new();
    let mut lines = Vec::new();
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let fault = |problem| TraceError::Line { path: path.to_owned(), line: at + 1, problem };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let line = parse_line(line).map_err(fault)?;
        if let Some(before) = keys.insert((line.account.clone(), line.key.clone()), at + 1) {
            return Err(fault(format!("key {} of account {} came before in line {before}", line.key, line.account)));
        }
        lines.push(line);
    }
    Ok(lines)
}

fn parse_line(text: &[u8]) -> Result<Line, String> {
    let line: Line =
        serde_json::from_slice(text).map_err(|error| format!("column {}: {}", error.column(), said(&error)))?;
    let interaction = Interaction {
        account: line.account.clone(),
        kind: line.kind.clone(),
        key_made: false,
        after: None,
        exclusive: None,
        key: line.key.clone(),
        payload: line.payload.clone(),
        series: line.series.clone(),
        group: None,
        run_at: None,
        priority: 0,
        policy: Policy::default(),
    };
    let faults = request::check(&interaction, DateTime::UNIX_EPOCH);
    match faults.first() {
        Some(fault) => Err(format!("{}: {}", fault.field, fault.message)),
        None => Ok(line),
    }
}

/// The error without its place, which is told beside the line's number.
fn said(error: &serde_json::Error) -> String {
    let full = error.to_string();
    full.split(" at line ").next().unwrap_or(&full).to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn line(at_ms: u64, key: &str) -> String {
        format!(r#"{{"at_ms":{at_ms},"account":"a","kind":"sync","series":"s","key":"{key}","payload":{{"files":1}}}}"#)
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn fails(name: &str, bytes: &[u8]) -> String {
        let (_dir, path) = file(name, bytes);
        read(&path, Duration::from_secs(1), usize::MAX).unwrap_err().to_string()
    }

    #[test]
    fn the_whole_lasts_as_long_as_it_is_told_to() {
        let (_dir, path) = file("t.ndjson.gz", &gzip(&[line(0, "1"), line(50, "2"), line(100, "3")].join("\n")));
        let jobs = read(&path, Duration::from_secs(10), usize::MAX).unwrap();
        assert_eq!(jobs.iter().map(|job| job.at.as_secs()).collect::<Vec<_>>(), [0, 5, 10]);
        let first = read(&path, Duration::from_secs(10), 2).unwrap();
        assert_eq!(first.iter().map(|job| job.at.as_secs()).collect::<Vec<_>>(), [0, 10]);
    }

    #[test]
    fn a_trace_that_is_cut_in_the_middle_says_where() {
        let text: String = (0..2_000).map(|n| line(n, &n.to_string()) + "\n").collect();
        let packed = gzip(&text);
        let said = fails("t.ndjson.gz", &packed[..packed.len() / 2]);
        assert!(said.contains("breaks in line") && said.contains("Fetch it again"), "{said}");
        let said = fails("t.ndjson", &text.as_bytes()[..text.len() / 2]);
        assert!(said.contains(", line 1") && said.contains("column"), "{said}");
    }

    #[test]
    fn a_broken_line_is_named_with_its_column() {
        let said = fails("t.ndjson", format!("{}\n{{\"at_ms\":1}}\n", line(0, "1")).as_bytes());
        assert!(said.contains("line 2: column 11: missing field `account`"), "{said}");
        let said = fails("t.ndjson", format!("{}\n{}\n", line(0, "1"), line(4, "")).as_bytes());
        assert!(said.contains("line 2: key:"), "{said}");
        let said = fails("t.ndjson", format!("{}\n{}\n", line(0, "1"), line(4, "1")).as_bytes());
        assert!(said.contains("line 2: key 1 of account a came before in line 1"), "{said}");
        let said = fails("t.ndjson", b"\xff\xfe\n");
        assert!(said.contains("line 1"), "{said}");
    }

    #[test]
    fn what_is_no_gzip_no_file_or_empty_says_so() {
        assert!(fails("t.gz", b"hello").contains("does not begin like it"));
        assert!(fails("t.ndjson", b"\n\n").contains("holds no interaction"));
        assert!(fails("t.ndjson.gz", &gzip("")).contains("holds no interaction"));
        let said = read(Path::new("gone.ndjson"), Duration::ZERO, 1).unwrap_err().to_string();
        assert!(said.contains("gone.ndjson can't be read"), "{said}");
    }
}
