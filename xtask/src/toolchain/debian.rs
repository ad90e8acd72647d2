//! The route where rustup can fetch nothing: Debian's security archive carries a current rustc, with sources and LLVM,
//! for its browsers. The packages are unpacked into a private directory, which needs no root and changes nothing else.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{BPF_LINKER_VERSION, Toolchain};
use crate::{
    packages,
    shell::{cargo, fresh_directory, probe, run, run_quietly, step, which},
};

/// In the marker file of a complete toolchain. Raised when the recipe changes, so that an older one is made anew.
const RECIPE: &str = "1";

/// The wrappers: the compiler finds its LLVM, and the linker that it starts finds the same one.
const WRAPPER: &str = "#!/bin/sh
directory=$(dirname \"$(readlink -f \"$0\")\")
LD_LIBRARY_PATH=\"$directory/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\" exec \"$directory/bin/${0##*/}\" \"$@\"
";

const WRAPPED: [&str; 2] = ["rustc", "clippy-driver"];

/// Whether the tools of this route are here.
pub fn is_possible() -> bool {
    ["apt-get", "apt-cache", "dpkg-deb"].iter().all(|tool| which(tool).is_some())
}

/// The toolchain that [`make`] left, if it is complete and of this recipe.
pub fn find(directory: &Path) -> Option<Toolchain> {
    let recipe = fs::read_to_string(marker(directory)).ok()?;
    let mut lines = recipe.lines();
    if lines.next() != Some(RECIPE) {
        return None;
    }
    Some(Toolchain {
        origin: format!("Debian's {}, private to this project", lines.next().unwrap_or("rustc")),
        rustc: directory.join("rustc"),
        cargo: None,
        clippy: Some(directory.join("clippy-driver")).filter(|driver| driver.is_file()),
        linker: env::var_os("BPF_LINKER").map_or_else(|| directory.join("bin/bpf-linker"), PathBuf::from),
    })
}

/// The linker of that toolchain.
pub fn private_linker(directory: &Path) -> Option<PathBuf> {
    find(directory).map(|toolchain| toolchain.linker)
}

/// Downloads, unpacks, builds the linker. The marker comes last: what was interrupted is begun again.
pub fn make(directory: &Path) -> Result<()> {
    fresh_directory(directory)?;
    let archives = step("downloading Debian's rustc, its sources and LLVM (about 140 MB)", || download(directory))?;
    let version = step("unpacking them (about 450 MB)", || unpack(directory, &archives))?;
    let llvm = llvm_major(&directory.join("rustc"))?;
    step(&format!("building bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm} (about a minute)"), || {
        let target = directory.join("build");
        run(cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--quiet"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
            .arg(directory)
            .arg("--target-dir")
            .arg(&target)
            .env("LLVM_PREFIX", directory)
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
    })?;
    fs::write(marker(directory), format!("{RECIPE}\n{version}\n")).context("cannot write the marker file")
}

/// Fetches the packages of one version into `directory/archives`.
fn download(directory: &Path) -> Result<PathBuf> {
    let archives = directory.join("archives");
    fresh_directory(&archives)?;
    if candidate("rust-web-src").is_none() {
        packages::update_lists()?;
    }
    let Some(version) = candidate("rust-web-src") else {
        bail!("Debian's archive has no package rust-web-src");
    };
    // The names carry versions: rustc's library package names its LLVM, and its development package names it.
    let library = dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = dependency(&library, "libllvm")?;
    let mut names: Vec<String> = ["rustc-web", "libstd-rust-web-dev", "rust-web-src", "rust-web-clippy", &library]
        .map(|name| format!("{name}={version}"))
        .into();
    names.extend(missing_libraries(&llvm));
    names.push(llvm);
    let get = || {
        run_quietly(
            Command::new("apt-get")
                .args(["download", "-o", "APT::Sandbox::User=root"])
                .args(&names)
                .current_dir(&archives),
        )
    };
    if get().is_err() {
        // The lists may be older than the archive, which keeps only the newest version.
        packages::update_lists()?;
        get()?;
    }
    Ok(archives)
}

/// Unpacks, and moves what is needed to where rustc looks for it. Returns the compiler's version line.
fn unpack(directory: &Path, archives: &Path) -> Result<String> {
    let tree = directory.join("tree");
    for entry in fs::read_dir(archives)? {
        run_quietly(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(&tree))?;
    }
    let lib = directory.join("lib");
    fs::create_dir_all(directory.join("bin"))?;
    fs::create_dir_all(&lib)?;
    for program in WRAPPED {
        rename(&tree.join("usr/bin").join(program), &directory.join("bin").join(program))?;
    }
    rename(&tree.join("usr/lib/rustlib"), &lib.join("rustlib"))?;
    for place in ["usr/lib", "lib"] {
        for multiarch in directories(&tree.join(place)) {
            for library in fs::read_dir(multiarch)? {
                let library = library?;
                if library.file_name().to_string_lossy().contains(".so") {
                    rename(&library.path(), &lib.join(library.file_name()))?;
                }
            }
        }
    }
    let sources = directories(&tree.join("usr/src"))
        .into_iter()
        .map(|sources| sources.join("library"))
        .find(|library| library.join("Cargo.lock").is_file())
        .context("the package rust-web-src has no library sources")?;
    fs::create_dir_all(lib.join("rustlib/src"))?;
    let target = lib.join("rustlib/src/rust");
    // Debian's own link there points into /usr/src.
    fs::remove_file(&target).or_else(|error| if target.exists() { Err(error) } else { Ok(()) })?;
    fs::create_dir_all(&target)?;
    rename(&sources, &target.join("library"))?;
    link_llvm(&lib)?;
    fs::remove_dir_all(&tree)?;
    fs::remove_dir_all(archives)?;

    for program in WRAPPED {
        let wrapper = directory.join(program);
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    probe(Command::new(directory.join("rustc")).arg("--version")).context("the unpacked rustc does not start")
}

/// bpf-linker's build looks for plain `libLLVM.so`.
fn link_llvm(lib: &Path) -> Result<()> {
    let llvm = fs::read_dir(lib)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .find(|name| name.starts_with("libLLVM.so."))
        .context("the LLVM package has no libLLVM.so")?;
    symlink(llvm, lib.join("libLLVM.so")).context("cannot link libLLVM.so")
}

/// LLVM's own libraries that this machine lacks; bare images have no libz3.
fn missing_libraries(llvm: &str) -> Vec<String> {
    let mut query = Command::new("apt-cache");
    query.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]);
    query.args(["--no-replaces", "--no-enhances", llvm]);
    let closure = probe(&mut query).unwrap_or_default();
    closure
        .lines()
        .filter(|line| !line.starts_with([' ', '<', '|']) && *line != llvm && line.starts_with("lib"))
        .filter(|name| !packages::is_installed(name))
        .map(str::to_owned)
        .collect()
}

fn llvm_major(rustc: &Path) -> Result<u32> {
    let version = probe(Command::new(rustc).arg("-vV")).context("cannot ask rustc for its version")?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .context("rustc does not name its LLVM version")
}

fn candidate(package: &str) -> Option<String> {
    let policy = probe(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn dependency(package: &str, prefix: &str) -> Result<String> {
    let record = run_quietly(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    depends
        .split(", ")
        .filter_map(|dependency| dependency.split(' ').next())
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .with_context(|| format!("package {package} depends on no {prefix}*"))
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

fn marker(directory: &Path) -> PathBuf {
    directory.join("complete")
}
