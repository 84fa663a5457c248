package config

func (c *Config) validate(ps *problems) {}
