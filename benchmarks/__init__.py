"""How fast and how light the uploader is, beside two scripts that do the same job."""
