//! Runs cases on the real processor.

use crate::program;
use crate::record::{Case, Ended, result};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Why nothing can run natively.
pub(crate) type Unavailable = String;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("native-{}", std::process::id()))
}

/// Writes the program once a test process.
fn install() -> Result<PathBuf, Unavailable> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Err("the host is not x86-64 Linux".into());
    }
    let directory = directory();
    let path = directory.join("program");
    fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    fs::write(&path, program::executable()).map_err(|error| error.to_string())?;
    make_executable(&path)?;
    Ok(path)
}

#[cfg(unix)]
fn make_executable(path: &std::path::Path) -> Result<(), Unavailable> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())
}

#[cfg(not(unix))]
fn make_executable(_path: &std::path::Path) -> Result<(), Unavailable> {
    Ok(())
}

/// Runs every case; the results come in the cases' order. `name` keeps the files of tests apart.
pub(crate) fn run(name: &str, cases: &[Case]) -> Result<Vec<Ended>, Unavailable> {
    static PROGRAM: OnceLock<Result<PathBuf, Unavailable>> = OnceLock::new();
    let program = PROGRAM.get_or_init(install).clone()?;
    let (input, output) = (directory().join(format!("{name}.in")), directory().join(format!("{name}.out")));
    let bytes: Vec<u8> = cases.iter().flat_map(Case::to_bytes).collect();
    fs::write(&input, bytes).map_err(|error| error.to_string())?;
    let open = File::open(&input).map_err(|error| error.to_string())?;
    let create = File::create(&output).map_err(|error| error.to_string())?;
    let status = Command::new(&program)
        .stdin(open)
        .stdout(create)
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("the program can't be executed: {error}"))?;
    let results = fs::read(&output).map_err(|error| error.to_string())?;
    let ended: Vec<Ended> = results.chunks_exact(result::BYTES).map(Ended::from_bytes).collect();
    let stuck = cases.get(ended.len()).map_or(&[][..], |case| &case.code);
    assert_eq!(ended.len(), cases.len(), "{name}: the program ended with {status} in {stuck:02x?}");
    let _ = fs::remove_file(input);
    let _ = fs::remove_file(output);
    if ended.iter().any(|each| program::is_own(each.rip)) {
        return Err("the kernel does not let a program run in this mode".into());
    }
    Ok(ended)
}
