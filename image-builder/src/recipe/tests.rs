//! Recipes that are right, and the sentences for those that are not.

use super::*;

fn parse(text: &str) -> Result<Recipe, RecipeError> {
    parse_for(text, None)
}

fn parse_for(text: &str, architecture: Option<Architecture>) -> Result<Recipe, RecipeError> {
    let text = Text { origin: "my.toml".to_owned(), content: text.to_owned(), folder: Some("/recipes".into()) };
    Recipe::parse(text, architecture)
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("the recipe is refused").to_string()
}

/// A recipe of one's own with these lines, the first of which is line 3.
fn own(lines: &str) -> String {
    format!("description = \"mine\"\nextends = \"default\"\n{lines}\n")
}

#[test]
fn every_shipped_recipe_is_sound() {
    for (profile, _) in SHIPPED {
        for architecture in Architecture::ALL {
            let recipe = Recipe::shipped(profile, Some(architecture)).expect(profile);
            let kernels = recipe.debian.packages.iter().filter(|package| package.starts_with("linux-image-"));
            assert_eq!(kernels.collect::<Vec<_>>(), [&format!("linux-image-cloud-{architecture}")], "{profile}");
            assert!(recipe.debian.packages.iter().any(|package| package == "podman"), "{profile}");
            assert_eq!(recipe.bootstrap.is_some(), profile != "default", "{profile}");
        }
    }
}

#[test]
fn an_unknown_profile_is_told_the_known_ones() {
    let told = Recipe::shipped("defualt", None).expect_err("no such profile").to_string();
    assert_eq!(told, "there is no profile `defualt`; the profiles are: default, bootstrapped, development");
}

#[test]
fn a_recipe_adds_to_the_one_that_it_extends() {
    let recipe = parse(&own(r#"
        [debian]
        packages = ["vim"]
        [partitions-mib]
        home = 700
        [files]
        "/etc/motd" = "hello\n"
        [[containers]]
        name = "localhost/app:1"
        archive = "app.tar"
        sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
        "#))
    .expect("a recipe");
    let default = Recipe::shipped("default", None).expect("the default recipe");
    assert_eq!(recipe.description, "mine");
    assert_eq!(recipe.debian.packages, [default.debian.packages, vec!["vim".to_owned()]].concat());
    assert_eq!(recipe.partitions_mib.of(Partition::Home), Some(700));
    assert_eq!(recipe.partitions_mib.of(Partition::Esp), default.partitions_mib.of(Partition::Esp));
    assert_eq!((recipe.files.len(), recipe.files["/etc/motd"].as_str()), (default.files.len() + 1, "hello\n"));
    let archives: Vec<_> = recipe.containers.iter().map(|container| container.archive.clone()).collect();
    assert_eq!(archives, [None, Some(PathBuf::from("/recipes/app.tar"))]);
}

#[test]
fn what_is_said_for_one_architecture_counts_for_that_one() {
    let text = own(r#"
        architecture = "arm64"
        [partitions-mib]
        home = 300
        [arm64.partitions-mib]
        home = 400
        [arm64.debian]
        packages = ["pi-bluetooth"]
        [amd64.debian]
        packages = ["intel-microcode"]
        "#);
    let has = |recipe: &Recipe, name: &str| recipe.debian.packages.iter().any(|package| package == name);
    let own = parse(&text).expect("a recipe");
    assert_eq!((own.architecture, own.partitions_mib.of(Partition::Home)), (Architecture::Arm64, Some(400)));
    assert!(has(&own, "pi-bluetooth") && !has(&own, "intel-microcode") && has(&own, "podman"));
    assert_eq!(own.kernel.command_line[..2], ["console=tty0", "console=ttyAMA0"]);

    let other = parse_for(&text, Some(Architecture::Amd64)).expect("a recipe");
    assert_eq!((other.architecture, other.partitions_mib.of(Partition::Home)), (Architecture::Amd64, Some(300)));
    assert!(has(&other, "intel-microcode") && !has(&other, "pi-bluetooth"));
    assert_eq!(other.kernel.command_line[..2], ["console=tty0", "console=ttyS0"]);
    let told = own.blame_package("pi-bluetooth").expect("it is named").to_string();
    assert_eq!(told, "my.toml, line 10: there is no package `pi-bluetooth` in trixie");
}

#[test]
fn a_recipe_may_extend_a_file_and_none_extends_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
    write("base.toml", &own("[partitions-mib]\nhome = 300"));
    write("mine.toml", "description = \"mine\"\nextends = \"base.toml\"\n");
    let mine = Recipe::read(&folder.path().join("mine.toml"), None).expect("a recipe");
    assert_eq!(mine.partitions_mib.of(Partition::Home), Some(300));

    let told = refusal("description = \"mine\"\nextends = \"defualt\"\n");
    assert!(told.starts_with("my.toml, line 2: there is no profile `defualt`"), "{told}");

    write("base.toml", "description = \"base\"\nextends = \"mine.toml\"\n");
    let told = Recipe::read(&folder.path().join("mine.toml"), None).expect_err("a circle").to_string();
    assert!(told.ends_with("and so on in a circle"), "{told}");
}

#[test]
fn what_the_esp_needs_is_told_with_its_line() {
    let recipe = parse(&own("[partitions-mib]\nesp = 64")).expect("a recipe");
    assert!(recipe.check_esp(60 << 20).is_ok());
    let told = recipe.check_esp(100 << 20).expect_err("it is too small").to_string();
    assert_eq!(told, "my.toml, line 4: p.UEFI needs 107 MiB at least, for the unified kernel image");
}

#[test]
fn a_mistake_is_found_by_its_line() {
    let cases = [
        ("[debian]\nsuite = 13", "my.toml, line 4: invalid type: integer `13`, expected a string"),
        (
            "[keys]\nrecipients = [\n    \"age1nobody\",\n]",
            "my.toml, line 5: `age1nobody` is not the public half of an age key",
        ),
        (
            "[keys]\ntpm2 = false\nrecovery-key = true",
            "my.toml, line 5: a recovery-key is for when the TPM does not open",
        ),
        ("[keys]\norder = [\n    \"tpm2\",\n    \"luck\",\n]", "my.toml, line 6: unknown variant `luck`"),
        ("[keys]\norder = [\n    \"tpm2\",\n    \"tpm2\",\n]", "my.toml, line 6: tpm2 is in the order twice"),
        ("[keys]\ntpm2-pcrs = [7, 11]", "my.toml, line 4: PCR 11 is not one of 0 to 7"),
        ("[overlay]\nvolatile-size = \"1GiB\"", "my.toml, line 4: `1GiB` is no amount of memory for changes"),
        (
            "[configurations]\nsigners = [\n    \"age1nobody\",\n]",
            "my.toml, line 5: `age1nobody` is not the public half of an Ed25519 key",
        ),
        (
            "[configurations]\nrequire-signature = true",
            "my.toml, line 4: a signature is required, and there are no signers",
        ),
        (
            "[[configurations.shipped]]\nname = \"factory\"\narchive = \"a.tar\"\nsha256 = \"0\"",
            "my.toml, line 4: configuration `factory`: that is the image itself",
        ),
        (
            "[[configurations.shipped]]\nname = \"site\"\narchive = \"a.tar\"\nsha256 = \"0\"",
            "my.toml, line 6: configuration `site`: `0`: a SHA-256 has 64",
        ),
        ("[squashfs]\nzstd-levle = 3", "my.toml, line 4: unknown field `zstd-levle`, expected `zstd-level`"),
        ("[debian]\npackages = [\n    \"vim\",\n    \"Vim\",\n]", "my.toml, line 6: `Vim`: names of packages are"),
        ("[partitions-mib]\nhome = 300\nhome = 301", "my.toml, line 5: duplicate key"),
        ("[partitions-mib]\nspare = 300", "my.toml, line 4: unknown field `spare`"),
        (
            "[partitions-mib]\noci-storage = 300",
            "my.toml, line 4: p.lxoci-storage needs 304 MiB at least, for mkfs.xfs",
        ),
        (
            "[partitions.state]\nsize-mib = 300\nmount-point = \"/x\"",
            "my.toml, line 3: every disk has a partition p.lxstate",
        ),
        (
            "[partitions.a]\nsize-mib = 300\nmount-point = \"/home\"",
            "my.toml, line 5: p.lxa cannot be mounted at `/home`",
        ),
        (
            "[partitions.a]\nmount-point = \"/x\"\nsize-mib = 9",
            "my.toml, line 5: p.lxa needs 16 MiB at least, for ext4",
        ),
        ("[partitions.a]\nfile-system = \"ntfs\"", "my.toml, line 4: unknown variant `ntfs`"),
        ("[squashfs]\nzstd-level = 23", "my.toml, line 4: zstd has the levels 1 to 22, not 23"),
        (
            "[users.eve]\nuid = 1001\npassword-hash = \"secret\"",
            "my.toml, line 5: user `eve`: the password is not hashed",
        ),
        ("[kernel]\ncommand-line = [\"roothash=00\"]", "my.toml, line 4: `roothash=00`: the builder puts it"),
        ("[verity]\nfec-roots = 1", "my.toml, line 4: fec-roots is 0 for no parity, or 2 to 24, not 1"),
        ("[units]\nenable = [\"a b\"]", "my.toml, line 4: `a b`: one word was expected"),
        ("[bootstrap]\nsha256 = \"12\"", "my.toml, line 4: `12`: a SHA-256 has 64 hexadecimal digits"),
        ("architecture = \"riscv64\"", "my.toml, line 3: unknown variant `riscv64`, expected `amd64` or `arm64`"),
        ("[riscv64.debian]\npackages = [\"vim\"]", "my.toml, line 3: unknown field `riscv64`"),
        ("[arm64]\nextends = \"default\"", "my.toml, line 4: `extends` is not said for one architecture only"),
        // Whichever is built.
        ("[arm64.squashfs]\nzstd-level = 23", "my.toml, line 4: zstd has the levels 1 to 22, not 23"),
        ("[amd64.debian]\npackages = [\"Vim\"]", "my.toml, line 4: `Vim`: names of packages are"),
        ("[debian", "my.toml, line 3: "),
    ];
    for (lines, expected) in cases {
        let told = refusal(&own(lines));
        assert!(told.starts_with(expected), "{lines}: {told}");
    }
}

#[test]
fn a_file_stays_inside_the_image() {
    for path in ["/etc/../../x", "etc/x", "/etc//x", "/etc/a b", "/"] {
        let told = refusal(&own(&format!("[files]\n\"{path}\" = \"\"")));
        assert!(told.starts_with(&format!("my.toml, line 4: file `{path}`: a path begins with")), "{told}");
    }
}

#[test]
fn a_container_has_one_source_and_a_name_of_its_own() {
    let cases = [
        (
            "name = \"busybox\"\npackages = [\"busybox-static\"]",
            "line 4: container `busybox`: a name is HOST[:PORT]/PATH:TAG",
        ),
        (
            "name = \"localhost:a/x:1\"\npackages = [\"vim\"]",
            "line 4: container `localhost:a/x:1`: a name is HOST[:PORT]/",
        ),
        (
            "name = \"localhost:5000\"\npackages = [\"vim\"]",
            "line 4: container `localhost:5000`: a name is HOST[:PORT]/",
        ),
        (
            "name = \"localhost/busybox:latest\"\npackages = [\"vim\"]",
            "line 4: container `localhost/busybox:latest`: there is another one",
        ),
        ("name = \"localhost/a:1\"", "line 4: container `localhost/a:1`: it is made of packages, or from an archive"),
        (
            "name = \"localhost/a:1\"\narchive = \"a.tar\"",
            "line 5: container `localhost/a:1`: an archive is named with its sha256",
        ),
        (
            "name = \"localhost/a:1\"\npackages = [\"vim\"]\nsetup = [\"vim\"]",
            "line 6: container `localhost/a:1`: `vim`: a program is named by its path",
        ),
    ];
    for (lines, expected) in cases {
        let told = refusal(&own(&format!("[[containers]]\n{lines}")));
        assert!(told.starts_with(&format!("my.toml, {expected}")), "{lines}: {told}");
    }
}

#[test]
fn a_container_may_be_named_after_a_registry_at_a_port() {
    let recipe = parse(&own("[[containers]]\nname = \"localhost:5000/some/app:1.0\"\npackages = [\"busybox\"]"));
    let names: Vec<_> = recipe.expect("a recipe").containers.into_iter().map(|container| container.name).collect();
    assert_eq!(names, ["localhost/busybox:latest", "localhost:5000/some/app:1.0"]);
}

#[test]
fn a_package_that_debian_has_not_is_found_by_its_line() {
    let recipe = parse(&own("[debian]\npackages = [\n    \"vim\",\n    \"tpyo\",\n]")).expect("a recipe");
    let told = recipe.blame_package("tpyo").expect("it is named").to_string();
    assert_eq!(told, "my.toml, line 6: there is no package `tpyo` in trixie");
    let told = recipe.blame_package("busybox-static").expect("it is named").to_string();
    assert!(told.starts_with("profile default, line "), "{told}");
    assert!(recipe.blame_package("libc6").is_none());
}
