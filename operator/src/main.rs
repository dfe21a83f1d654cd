//! `sluice-operator`: `run` in a cluster, `local` on a laptop, `crd` for the definition of the resource.

fn main() -> anyhow::Result<()> {
    print!("{}", sluice_operator::crd::yaml()?);
    Ok(())
}
