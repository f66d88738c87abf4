//! The last good document on disk, so that a restart with a broken or missing file goes on where it stood.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::document::{Document, Fault};

/// Where the last good document is kept: its text as it was, so its revision stays the same. The file's time is when
/// the source last said so.
#[derive(Debug, Clone)]
pub(super) struct LastGood {
    path: PathBuf,
    of_server: bool,
}

/// A server's document with the number that it gave its revision.
#[derive(Serialize, Deserialize)]
struct Numbered<'a> {
    revision: Option<u64>,
    #[serde(borrow)]
    document: &'a RawValue,
}

impl LastGood {
    pub(super) fn in_dir(state_dir: &Path) -> Self {
        Self { path: state_dir.join("flags-last-good.json"), of_server: false }
    }

    /// A server's own: what another one said, or the same about another environment, is never taken for it.
    pub(super) fn of_server(state_dir: &Path, source: &str) -> Self {
        let hex: String = Sha256::digest(source).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { path: state_dir.join(format!("flags-last-good-{hex}.json")), of_server: true }
    }

    /// The stored document and when its source last said so, or why there is none.
    pub(super) fn load(&self) -> Result<(Document, DateTime<Utc>), String> {
        let document = if self.of_server { self.load_numbered()? } else { load(&self.path)? };
        let modified = fs::metadata(&self.path).and_then(|found| found.modified());
        let good_at = modified.map_err(|error| format!("{}: has no time: {error}", self.path.display()))?;
        Ok((document, good_at.into()))
    }

    fn load_numbered(&self) -> Result<Document, String> {
        let text = read(&self.path)?;
        let numbered: Numbered<'_> =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", self.path.display()))?;
        Document::of_server(numbered.document.get().to_owned(), numbered.revision)
            .map_err(|faults| refused(&self.path, &faults))
    }

    /// Keeps `document`. The error says what to look at.
    pub(super) fn store(&self, document: &Document) -> Result<(), String> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let text = if self.of_server { numbered(document) } else { Ok(document.text().to_owned()) };
        let stored = text.and_then(|text| {
            fs::create_dir_all(dir)?;
            replace(&self.path, &text)
        });
        stored.map_err(|error| {
            format!(
                "{}: can't keep the flags in force for the next start: {error}; \
                 until it can, a restart without a good source of flags would not be ready",
                self.path.display()
            )
        })
    }

    /// Notes that the source has just said again what is stored.
    pub(super) fn confirm(&self) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.path)?.set_modified(std::time::SystemTime::now())
    }
}

fn numbered(document: &Document) -> io::Result<String> {
    let raw: &RawValue = serde_json::from_str(document.text())?;
    Ok(serde_json::to_string(&Numbered { revision: document.server_revision(), document: raw })?)
}

/// Reads and checks the document at `path`; the error names the file and everything wrong with it.
pub(super) fn load(path: &Path) -> Result<Document, String> {
    check(path, read(path)?)
}

pub(super) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: can't be read: {error}", path.display()))
}

pub(super) fn check(path: &Path, text: String) -> Result<Document, String> {
    Document::parse(&text).map_err(|faults| refused(path, &faults))
}

fn refused(path: &Path, faults: &[Fault]) -> String {
    let lines: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    format!("{}: refused, {} to mend:{lines}", path.display(), faults.len())
}

/// Replaces `path` in one step: a reader, or a crash, sees the old text or the new one and nothing between.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temp = temp_beside(path)?;
    let result = write_synced(&temp, text).and_then(|()| fs::rename(&temp, path));
    if result.is_err() {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(&temp);
        return result;
    }
    File::open(dir_of(path))?.sync_all()
}

/// The directory that holds `path`, also where `path` is a bare name.
pub(super) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn temp_beside(path: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temp = format!(".{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id());
    Ok(dir_of(path).join(temp))
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
