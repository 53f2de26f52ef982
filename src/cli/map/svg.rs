pub fn draw(
    _title: &str,
    _spec: &weightsync::plan::mapping::MappingSpec,
    _mapping: &weightsync::plan::mapping::Mapping,
    _routed: &[weightsync::plan::mapping::Pair],
) -> Result<String, weightsync::Error> {
    Ok(String::new())
}
