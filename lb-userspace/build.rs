//! Says whether an eBPF object is there to be embedded: `cargo xtask build` names it in `SLUICE_EBPF_OBJECT`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sluice_ebpf_object)");
    println!("cargo::rerun-if-env-changed=SLUICE_EBPF_OBJECT");
    if let Ok(path) = std::env::var("SLUICE_EBPF_OBJECT") {
        println!("cargo::rerun-if-changed={path}");
        println!("cargo::rustc-cfg=sluice_ebpf_object");
    }
}
