//! The images that the chart names, as `images/build.sh` packs them: of the programs that the tests
//! run.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sluice_tests::{docs::block, process::workspace_program};
use tempfile::TempDir;

use crate::helm::{Objects, Said, root};

/// Packs the programs beside this test into `out`.
fn pack(out: &Path) -> String {
    let programs = workspace_program("sluice-operator").parent().unwrap().to_path_buf();
    let mut command = Command::new("sh");
    command
        .args(["-c", &block("chart", "make-images").command()])
        .current_dir(root())
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    command
        .env("IMAGE_PROGRAMS", programs)
        .env("IMAGE_OUT", out)
        .env_remove("IMAGE_PREFIX")
        .env_remove("IMAGE_TAG");
    Said::of(&mut command).expect("make images")
}

fn unpack(archive: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    Said::of(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder)).expect("tar");
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(
        &std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
    )
    .unwrap()
}

/// The blob that `descriptor` means, which must be what its digest says.
fn blob(oci: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = oci.join("blobs/sha256").join(digest);
    let said = Said::of(Command::new("sha256sum").arg(&path)).expect("sha256sum");
    assert!(said.starts_with(digest), "{said} is not {digest}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
    path
}

#[test]
fn packed_twice_they_are_the_same_bytes() {
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (said, again) = (pack(first.path()), pack(second.path()));
    println!("{said}");
    let digests = |said: &str| {
        said.split_whitespace()
            .filter(|word| word.starts_with("sha256:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!((digests(&said).len(), digests(&said)), (2, digests(&again)));
    for name in ["sluice-operator.oci.tar", "sluice-dataplane.oci.tar"] {
        let same = std::fs::read(first.path().join(name)).unwrap()
            == std::fs::read(second.path().join(name)).unwrap();
        assert!(same, "{name} differs");
    }
}

#[test]
fn they_hold_the_program_and_no_more_and_run_as_nobody() {
    let files = TempDir::new().unwrap();
    pack(files.path());
    let named = Objects::rendered(&json!({"natsServer": {"enabled": true}}));
    let operator = named.operator()["containers"][0]["image"].as_str().unwrap().to_owned();
    let flag = named
        .arguments()
        .into_iter()
        .find_map(|a| a.strip_prefix("--dataplane-image="))
        .unwrap()
        .to_owned();
    for (program, image) in [("sluice-operator", operator), ("sluice-dataplane", flag)] {
        let (oci, layer) = (
            files.path().join(format!("{program}.oci")),
            files.path().join(format!("{program}.root")),
        );
        unpack(&files.path().join(format!("{program}.oci.tar")), &oci);
        assert_eq!(json_of(&oci.join("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));
        let index = json_of(&oci.join("index.json"));
        let entry = &index["manifests"][0];
        // What the kubelet makes of the chart's short name.
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            format!("docker.io/library/{image}")
        );
        let manifest = json_of(&blob(&oci, entry));
        let config = json_of(&blob(&oci, &manifest["config"]));
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        assert_eq!(
            (&config["architecture"], &config["os"]),
            (&json!(architecture), &json!("linux"))
        );
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"], json!([format!("/{program}")]));
        let label = |name: &str| {
            config["config"]["Labels"][format!("org.opencontainers.image.{name}")]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            (label("version"), label("licenses")),
            (env!("CARGO_PKG_VERSION").to_owned(), "Apache-2.0".to_owned())
        );
        assert_eq!(
            config["rootfs"]["diff_ids"],
            json!([manifest["layers"][0]["digest"]]),
            "the layer is not compressed"
        );

        unpack(&blob(&oci, &manifest["layers"][0]), &layer);
        let said = Said::of(Command::new("find").args([".", "-type", "f"]).current_dir(&layer))
            .expect("find");
        let mut others: Vec<&str> = said.lines().collect();
        others.retain(|path| {
            *path != format!("./{program}") && *path != "./etc/ssl/certs/ca-certificates.crt"
        });
        // The programs of the tests are dynamic; released ones are static and bring no library.
        assert!(
            others.iter().all(|path| path.starts_with("./lib") && path.contains(".so")),
            "{others:?}"
        );
        runs_as_nobody(&layer, program);
    }
}

/// Starts the program in the image's root, and nothing but that, as the image's user.
fn runs_as_nobody(layer: &Path, program: &str) {
    if !rustix::process::geteuid().is_root() {
        println!("not root: {program} was not started in its image's root");
        return;
    }
    let mut command = Command::new("chroot");
    command
        .arg("--userspec=65532:65532")
        .arg(layer)
        .arg(format!("/{program}"))
        .arg("--version")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let said = Said::of(&mut command).expect("the program in its image");
    assert_eq!(said.trim(), format!("{program} {}", env!("CARGO_PKG_VERSION")));
}
